"""Splits samples into parts with equal class proportions."""

from collections.abc import Sequence

import torch

from src.engine.system.errors import InputError

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
