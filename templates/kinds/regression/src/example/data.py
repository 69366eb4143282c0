"""Rows of numbers and a value for each: replace them with your own data."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.engine.data.batched import BatchedDataModule


Batch = tuple[Tensor, Tensor]


class ExampleRows(Dataset[Batch]):
    """Random numbers and a function of them with noise (Friedman 1991).

    Args:
        count: number of rows.
        seed: another seed gives other rows.
    """

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(count, len(ExampleDataModule.columns), generator=generator)
        self.rows = [dict(zip(ExampleDataModule.columns, row, strict=True)) for row in x.tolist()]
        values = 10 * torch.sin(torch.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
        self.targets = (values + torch.randn(count, generator=generator)).unsqueeze(1)  # (count, 1)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, indices: list[int]) -> Batch:
        """A batch: features (B, 5) and targets (B, 1), both float."""
        return features([self.rows[index] for index in indices]), self.targets[indices]


def features(rows: list[dict[str, float]]) -> Tensor:
    """Features (B, 5) float of rows, which have the names of the columns: in training and in prediction."""
    return torch.tensor([[row[name] for name in ExampleDataModule.columns] for row in rows])


class ExampleDataModule(BatchedDataModule):
    """Rows in parts for training, validation and test.

    Args:
        batch_size: rows per batch over all processes.
        size: number of training rows; validation and test have a fifth of it each.
        num_workers: processes that build batches.
    """

    input_kind = "table"
    columns = ("x1", "x2", "x3", "x4", "x5")
    labels = ("y",)

    def __init__(self, batch_size: int = 64, size: int = 4000, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.size = size
        self.num_workers = num_workers

    def network_arguments(self) -> dict[str, int]:
        """The network arguments that depend on the data; called before `setup`."""
        return {"num_features": len(self.columns), "num_targets": len(self.labels)}

    def setup(self, stage: str) -> None:
        sizes = (self.size, self.size // 5, self.size // 5)
        self.train_set, self.val_set, self.test_set = (ExampleRows(count, seed) for seed, count in enumerate(sizes))

    def prepare(self, inputs: list[dict[str, float]]) -> Tensor:
        """Features of rows to predict on: see `features`."""
        return features(inputs)
