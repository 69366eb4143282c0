"""A loss for rare labels."""

import torch
from torch import nn

from src.engine.system.errors import InputError


class WeightedBCE(nn.BCEWithLogitsLoss):
    """Binary cross entropy with a weight per label for targets of 1, for rare labels.

    Args:
        label_weights: a number above 0 for each label.
    """

    def __init__(self, label_weights: list[float]) -> None:
        if not all(0 < weight < float("inf") for weight in label_weights):
            raise InputError(f"label_weights {label_weights}: give numbers above 0")
        super().__init__()
        # Not saved: the weights are those of the arguments, which a continued run may change.
        self.register_buffer("pos_weight", torch.tensor(label_weights, dtype=torch.float32), persistent=False)
        self.label_weights = label_weights
