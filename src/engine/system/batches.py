"""Batches of any type, and values of several processes."""

import math
from typing import Any

import torch
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

Sample = dict[str, Tensor]
"""One test sample of a task: `target`, `preds`, and for most tasks `inputs`."""


def batch_size(batch: Any) -> float:
    """Samples in a batch: `num_graphs` of a batch of graphs, length of the first tensor, or `len(batch)`; else NaN."""
    if hasattr(batch, "num_graphs"):
        return int(batch.num_graphs)
    try:
        return extract_batch_size(batch)
    except (MisconfigurationException, RecursionError):
        return len(batch) if hasattr(batch, "__len__") else math.nan


def gathered(value: Any) -> list[Any]:
    """The values of all processes of a run, which must all call this."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    everyone = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, value)
    return everyone


def plain_labels(data: Any) -> list[Any]:
    """A DataModule's `labels`, also of an array or tensor; empty if it has none."""
    labels: Any = getattr(data, "labels", None)
    if labels is None:
        return []
    return list(labels.tolist() if hasattr(labels, "tolist") else labels)


def labels_of(data: Any) -> list[str]:
    """A DataModule's `labels` as text; empty if it has none."""
    return [str(one) for one in plain_labels(data)]
