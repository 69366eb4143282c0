"""A plain LightningModule: replace it with your own."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from src.example.data import POINTS

Batch = tuple[Tensor, Tensor]


class ExampleModule(LightningModule):
    """Removes noise from curves, (B, POINTS) float -> (B, POINTS) float.

    Args:
        hidden: width of the network's bottleneck.
        lr: learning rate of Adam.
    """

    def __init__(self, hidden: int = 8, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(POINTS, hidden), nn.Tanh(), nn.Linear(hidden, POINTS))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._loss("train", batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._loss("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._loss("test", batch)

    def _loss(self, stage: str, batch: Batch) -> Tensor:
        noisy, clean = batch
        loss = F.mse_loss(self(noisy), clean)
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
