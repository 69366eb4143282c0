"""Splits samples into parts with equal class proportions, and finds samples that are in several parts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from src.engine.data.loading import announce
from src.engine.system.errors import InputError

PARTS = {"train": "training", "val": "validation", "test": "test"}  # names of the parts, in code and in messages
# Not the run's seed: the split is the same in every run.
SPLIT_SEED = 0


def stratified_split(targets: Sequence[int], shares: Sequence[float]) -> list[list[int]]:
    """Split samples at random, class by class; returns the sorted indices of each part.

    Args:
        targets: class number of every sample.
        shares: fraction of each part except the first, which gets the rest. Every part with a share above 0 gets at
            least one sample of each class, if the class has enough; at least one stays in the first part.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    members = torch.as_tensor(targets)
    for label in sorted(set(targets)):
        found = (members == label).nonzero().squeeze(1)
        order = found[torch.randperm(len(found), generator=generator)].tolist()
        for part, share in zip(parts[1:], shares, strict=True):
            count = min(max(round(share * len(found)), int(share > 0)), max(len(order) - 1, 0))
            part += order[:count]
            order = order[count:]
        parts[0] += order
    return [sorted(part) for part in parts]


def check_shares(val_share: float, test_share: float) -> None:
    """Raise InputError if a share is out of range, or validation and test leave nothing to train on."""
    for name, share in (("val_share", val_share), ("test_share", test_share)):
        if not 0 < share < 1:
            raise InputError(f"{name} {share} is out of range: give a fraction between 0 and 1")
    if val_share + test_share >= 1:
        raise InputError(f"val_share {val_share} and test_share {test_share} leave nothing to train on: give less")


@rank_zero_only
def report_duplicates(parts: dict[str, list[Any]], kind: str, name: Callable[[str, int], str]) -> None:
    """Log how many samples are also in an earlier part, with one example.

    Args:
        parts: for each part, a key for each sample, equal for equal samples.
        kind: what the samples are, such as images.
        name: gives the name of a sample, by part and index.
    """
    hashes = np.fromiter((hash(key) for keys in parts.values() for key in keys), np.int64)
    ordered = np.sort(hashes)  # eight bytes a sample: a dict of all would take more memory than short texts
    repeated = np.isin(hashes, np.unique(ordered[1:][ordered[1:] == ordered[:-1]]))
    first: dict[Any, tuple[str, str]] = {}
    start = 0
    for part, keys in parts.items():
        found: dict[str, list[str]] = {}
        own = repeated[start : start + len(keys)].nonzero()[0].tolist()
        start += len(keys)
        for key, shown in ((keys[index], name(part, index)) for index in own):
            earlier, same = first.setdefault(key, (part, shown))
            if earlier != part:
                found.setdefault(earlier, []).append(shown if shown == same else f"{shown}, the same as {same}")
        for earlier, examples in found.items():
            announce(f"{len(examples):,} {PARTS[part]} {kind} are also {PARTS[earlier]} {kind}, such as {examples[0]}")
