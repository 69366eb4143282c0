"""A loss for unbalanced classes."""

from typing import Any

import torch
from torch import nn

from src.engine.system.errors import InputError


class WeightedCrossEntropy(nn.CrossEntropyLoss):
    """Cross entropy with a weight per class, for unbalanced classes: the weighted mean over the targets.

    Shapes:
        logits (B, num_classes, ...) float, targets (B, ...) int64, -100 is ignored -> one value.

    Args:
        class_weights: a number above 0 for each class.
        label_smoothing: see `torch.nn.CrossEntropyLoss`.

    Raises:
        InputError: a weight is not above 0, or infinite.
    """

    def __init__(self, class_weights: list[float], label_smoothing: float = 0.0) -> None:
        if not all(0 < weight < float("inf") for weight in class_weights):
            raise InputError(f"class_weights {class_weights}: give numbers above 0")
        super().__init__(torch.tensor(class_weights, dtype=torch.float32), label_smoothing=label_smoothing)
        self.class_weights = class_weights
        self.register_load_state_dict_pre_hook(_keep_weight)  # type: ignore[no-untyped-call]


def _keep_weight(loss: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """The arguments decide, not a checkpoint: they may be changed in a continued run."""
    state_dict[f"{prefix}weight"] = loss.weight.new_tensor(loss.class_weights)  # type: ignore[operator]
