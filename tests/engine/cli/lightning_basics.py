"""LightningModules and DataModules as people write them, without a thought of this project."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

SIZE = 24  # samples of every data set; six batches of four
FEATURES = 4


def numbers(seed: int = 0) -> Tensor:
    return torch.randn(SIZE, FEATURES, generator=torch.Generator().manual_seed(seed))


def labelled(seed: int = 0) -> TensorDataset:
    x = numbers(seed)
    return TensorDataset(x, (x.sum(dim=1) > 0).long())


class NumbersData(LightningDataModule):
    """Features and labels; prepares rows of a table."""

    input_kind = "table"
    columns = ("a", "b", "c", "d")

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.batch_size = batch_size

    def prepare(self, inputs: list[dict[str, float]]) -> Tensor:
        return torch.tensor([[row[name] for name in self.columns] for row in inputs])

    def setup(self, stage: str) -> None:
        self.train, self.val, self.test = (labelled(seed) for seed in range(3))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test, batch_size=self.batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test.tensors[0], batch_size=self.batch_size)  # type: ignore[arg-type]


class OnlyNumbers(LightningDataModule):
    """Unlabelled features: a batch is one tensor. Without data for tests."""

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(numbers(0), batch_size=self.batch_size, shuffle=True)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(numbers(1), batch_size=self.batch_size)  # type: ignore[arg-type]

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader(numbers(2), batch_size=self.batch_size)  # type: ignore[arg-type]


class Autoencoder(LightningModule):
    """The first example of Lightning's documentation, with its metric names."""

    def __init__(self, hidden: int = 3, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, hidden), nn.ReLU())
        self.decoder = nn.Linear(hidden, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def _loss(self, batch: Any) -> Tensor:
        x = batch[0] if isinstance(batch, list) else batch
        return F.mse_loss(self.decoder(self.encoder(x)), x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch), prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self._loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


class GAN(LightningModule):
    """Two optimizers and manual optimization; logs in training only; has no test."""

    def __init__(self, latent: int = 2, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Linear(latent, FEATURES)
        self.discriminator = nn.Linear(FEATURES, 1)

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real, _ = batch
        optimizer_g, optimizer_d = self.optimizers()
        z = torch.randn(len(real), self.hparams.latent, device=self.device)
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)

        self.toggle_optimizer(optimizer_g)
        g_loss = F.binary_cross_entropy_with_logits(self.discriminator(self(z)), ones)
        self.log("g_loss", g_loss, prog_bar=True)
        self.manual_backward(g_loss)
        optimizer_g.step()
        optimizer_g.zero_grad()
        self.untoggle_optimizer(optimizer_g)

        self.toggle_optimizer(optimizer_d)
        d_loss = F.binary_cross_entropy_with_logits(self.discriminator(real), ones)
        d_loss = d_loss + F.binary_cross_entropy_with_logits(self.discriminator(self(z).detach()), zeros)
        self.log("d_loss", d_loss, prog_bar=True)
        self.manual_backward(d_loss)
        optimizer_d.step()
        optimizer_d.zero_grad()
        self.untoggle_optimizer(optimizer_d)

    def configure_optimizers(self) -> Any:
        parts = (self.generator, self.discriminator)
        return [torch.optim.Adam(part.parameters(), lr=self.hparams.lr) for part in parts], []


class Experience(IterableDataset[Any]):
    """Episodes of an agent; nobody knows how many."""

    def __iter__(self) -> Iterator[Any]:
        for step in range(SIZE):
            state = torch.full((FEATURES,), float(step % 5))
            yield state, step % 2, 1.0 + step % 3  # state, action, reward


class Agent(LightningModule):
    """Reinforcement learning: a policy that makes its own data of unknown length."""

    def __init__(self, batch_size: int = 4, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.policy = nn.Linear(FEATURES, 2)
        self.total_reward = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.policy(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        state, action, reward = batch
        chosen = self(state).log_softmax(dim=1).gather(1, action[:, None])[:, 0]
        self.total_reward += float(reward.sum())
        loss = -(chosen * reward.float()).mean()
        self.log_dict({"policy_loss": loss, "total_reward": self.total_reward}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Experience(), batch_size=self.hparams.batch_size)
