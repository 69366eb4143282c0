"""Reads the size of a batch of any type."""

import math
from typing import Any

from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.exceptions import MisconfigurationException


def batch_size(batch: Any) -> float:
    """Samples in a batch: `num_graphs` of a batch of graphs, length of the first tensor, or `len(batch)`; else NaN."""
    if hasattr(batch, "num_graphs"):
        return int(batch.num_graphs)
    try:
        return extract_batch_size(batch)
    except (MisconfigurationException, RecursionError):
        return len(batch) if hasattr(batch, "__len__") else math.nan
