"""Noisy curves: replace them with your own data."""

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

POINTS = 32  # of a curve


def curves(count: int, seed: int, noise: float = 0.5) -> TensorDataset:
    """Sines of any amplitude and phase: noisy ones and what they were, both (count, POINTS) float."""
    generator = torch.Generator().manual_seed(seed)
    amplitude, phase = torch.rand(2, count, 1, generator=generator)
    clean = (amplitude + 0.5) * torch.sin(torch.linspace(0, 6.28, POINTS) + 6.28 * phase)
    return TensorDataset(clean + noise * torch.randn(count, POINTS, generator=generator), clean)


class ExampleDataModule(LightningDataModule):
    """Batches of noisy and clean curves, both (B, POINTS) float.

    Args:
        batch_size: curves per batch.
        size: number of training curves; validation and test have a fifth of it each.
    """

    def __init__(self, batch_size: int = 32, size: int = 1000) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.size = size

    def setup(self, stage: str) -> None:
        self.train, self.val, self.test = curves(self.size, 0), curves(self.size // 5, 1), curves(self.size // 5, 2)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.test, self.batch_size)
