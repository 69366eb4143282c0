"""Reads a training part in few large batches, where only its values are needed."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch

from src.engine.data.loading import Indices, ResumableLoader

LARGE = 2**24  # bytes of several batches together


def in_large_batches(loader: Any, limit: int | None) -> Iterator[Any]:
    """The first `limit` batches of a loader, several at once if this process builds them and they are small."""
    if not isinstance(loader, ResumableLoader) or loader.num_workers:
        yield from islice(loader, limit)
        return
    left, count = islice(loader.sampler, limit), 1
    while group := [one for one in islice(left, count) if not one.is_padding]:
        indices = Indices(chain.from_iterable(group))
        indices.epoch_seed, indices.is_padding = group[0].epoch_seed, False
        batch = loader.dataset[indices]
        used = sum(one.nbytes for one in batch if isinstance(one, torch.Tensor))
        count = max(1, LARGE * len(group) // used) if used else 1
        yield batch
