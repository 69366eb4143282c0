"""Loaders over data that is cut into whole batches in memory."""

import warnings
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler


def in_memory_loader(dataset: Dataset[Any], batch_size: int, sampler: Sampler[Any] | None = None) -> DataLoader[Any]:
    """A loader whose dataset gives a whole batch for a list of indices."""
    # Lightning's advice to add worker processes would only cost time here.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    pin = torch.cuda.is_available()
    return DataLoader(dataset, batch_size, sampler=sampler, collate_fn=_already_a_batch, pin_memory=pin)


def replica(trainer: Any) -> dict[str, int]:
    """Number of processes, which of them this one is, and the run's seed, as a sampler takes them."""
    world, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
    return {"num_replicas": world, "rank": rank, "seed": torch.initial_seed() % 2**32}


def _already_a_batch(batch: Any) -> Any:
    return batch
