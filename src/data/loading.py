"""Loaders over data that is cut into whole batches in memory."""

import warnings
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler


def in_memory_loader(
    dataset: Dataset[Any],
    batch_size: int,
    sampler: Sampler[Any] | None = None,
    *,
    shuffle: bool | None = None,
    num_workers: int = 0,
    on_device: bool = False,
) -> DataLoader[Any]:
    """A loader whose dataset gives a whole batch for a list of indices, one that is on the device already or is not."""
    # Lightning's advice to add worker processes would only cost time here.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    return DataLoader(
        dataset,
        batch_size=batch_size,  # by name: to predict, Lightning makes the loader once more from its names
        shuffle=shuffle,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available() and not on_device,
        collate_fn=already_a_batch,
    )


def replica(trainer: Any) -> dict[str, int]:
    """Number of processes, which of them this one is, and the run's seed, as a sampler takes them."""
    world, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
    return {"num_replicas": world, "rank": rank, "seed": torch.initial_seed() % 2**32}


def already_a_batch(batch: Any) -> Any:
    """In place of collation; a function with a name, so that worker processes can be given it."""
    return batch
