"""Splits samples into parts, and folds, with equal class proportions, and finds samples that are in several parts."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from src.engine.data.loading import announce
from src.engine.system.errors import InputError

PARTS = {"train": "training", "val": "validation", "test": "test"}  # names of the parts, in code and in messages
# Not the run's seed: the split is the same in every run.
SPLIT_SEED = 0


def stratified_split(
    targets: Sequence[int], shares: Sequence[float], keys: Sequence[Any] | None = None
) -> list[list[int]]:
    """Split samples at random, class by class; returns the sorted indices of each part.

    Args:
        targets: class number of every sample.
        shares: fraction of each part except the first, which gets the rest. Every part with a share above 0 gets at
            least one sample of each class, if the class has enough; at least one stays in the first part.
        keys: a key of every sample; samples with equal keys, such as the pictures of one patient, are in the same part.
            Shares and classes are then those of the keys, whose class is that of their first sample.
    """
    if keys is None:
        return [part.tolist() for part in stratified_indices(torch.as_tensor(targets), shares)]
    groups = _grouped(range(len(targets)), keys)
    parts = stratified_split([int(targets[own[0]]) for own in groups], shares)
    return [sorted(index for number in part for index in groups[number]) for part in parts]


def stratified_indices(targets: Tensor, shares: Sequence[float]) -> list[Tensor]:
    """`stratified_split` with tensors of indices (N,) int64, for millions of samples."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    parts = [[torch.empty(0, dtype=torch.int64)] for _ in range(len(shares) + 1)]
    by_class = targets.argsort(stable=True)
    for found in torch.split(by_class, np.unique(targets, return_counts=True)[1].tolist()):
        order = found[torch.randperm(len(found), generator=generator)]
        for part, share in zip(parts[1:], shares, strict=True):
            count = min(max(round(share * len(found)), int(share > 0)), max(len(order) - 1, 0))
            part.append(order[:count])
            order = order[count:]
        parts[0].append(order)
    return [torch.cat(part).sort().values for part in parts]


def with_fold(
    parts: Sequence[Sequence[int]],
    targets: Sequence[Any],
    fold: int | None,
    folds: int,
    keys: Sequence[Any] | None = None,
) -> list[list[int]]:
    """Parts for cross-validation: one fold of training and validation part to validate on, the other folds to train on.

    Args:
        parts: sample indices of the training, validation and test part; the last is not changed.
        targets: class of every sample; each fold gets its share of each class. All 0 if there are no classes.
        fold: 1 to folds; None: the parts as they are.
        folds: number of folds.
        keys: a key of every sample; samples with equal keys, such as copies, are in the same fold.

    Raises:
        InputError: there are too few samples for a fold.
    """
    train, val, *rest = ([*part] for part in parts)
    if fold is None:
        return [train, val, *rest]
    targets, pool = _plain(targets), sorted(train + val)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    groups = _grouped([pool[place] for place in order], range(len(targets)) if keys is None else keys)
    dealt: list[list[int]] = [[] for _ in range(folds)]
    counts = [Counter[Any]() for _ in range(folds)]
    for group in sorted(groups, key=len, reverse=True):  # stable: groups of one size stay shuffled
        label = targets[group[0]]
        least = min(range(folds), key=lambda number: (counts[number][label], len(dealt[number])))
        dealt[least] += group
        counts[least].update(targets[index] for index in group)
    if not all(dealt):
        raise InputError(f"{len(groups)} different samples are too few for {folds} folds: give fewer --data.folds")
    others = [index for number, one in enumerate(dealt) if number != fold - 1 for index in one]
    return [sorted(others), sorted(dealt[fold - 1]), *rest]


def _grouped(indices: Iterable[int], keys: Sequence[Any]) -> list[list[int]]:
    """The indices of each key, in the order in which the keys occur."""
    keys, groups = _plain(keys), defaultdict[Any, list[int]](list)
    for index in indices:
        groups[keys[index]].append(index)
    return list(groups.values())


def _plain(values: Any) -> Sequence[Any]:
    """Values that can be compared: equal numbers in a tensor are different objects."""
    return values.tolist() if isinstance(values, Tensor) else values


def fold_samples(
    parts: dict[str, list[Any]],
    fold: int | None,
    folds: int,
    label: Callable[[Any], Any],
    key: Callable[[Any], Any],
) -> dict[str, list[Any]]:
    """`with_fold` for the samples of each part; `label` and `key` give the class and the key of a sample."""
    if fold is None:
        return parts
    pool, first = parts["train"] + parts["val"], len(parts["train"])
    usual = (range(first), range(first, len(pool)))
    folded = with_fold(usual, [label(one) for one in pool], fold, folds, [key(one) for one in pool])
    train, val = ([pool[index] for index in own] for own in folded)
    return {**parts, "train": train, "val": val}


def check_parts(paths: Sequence[str | None], what: str, val_share: float, test_share: float) -> None:
    """Raise InputError if only validation or test has one of the three paths, or shares leave nothing to train on."""
    if not paths[0] and any(paths):
        raise InputError(f"--data.val_path and --data.test_path need --data.path, the {what} to train on")
    if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
        given = f"val_share {val_share} and test_share {test_share}"
        raise InputError(f"{given} are out of range: give fractions above 0, together below 1")


@rank_zero_only
def report_duplicates(parts: Mapping[str, Sequence[Any]], kind: str, name: Callable[[str, int], str]) -> None:
    """Log how many samples are also in an earlier part, with the `name` of one.

    `parts` are the keys of the samples of each part, equal for equal samples; `kind` is what they are, such as images.
    """
    hashes = np.fromiter(map(hash, chain.from_iterable(parts.values())), np.int64)
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


def check_fraction(**given: float) -> None:
    """Raise InputError if a share is below 0, or not below 1."""
    for name, value in given.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} {value} is out of range: give a share of at least 0 and below 1")
