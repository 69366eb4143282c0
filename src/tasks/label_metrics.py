"""Metrics of several labels per input: means over the labels that occur."""

from typing import Any

from torch import Tensor
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score, MultilabelPrecisionRecallCurve
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities.data import dim_zero_cat

from src.tasks.classifier import UNCHECKED


class MacroAveragePrecision(MultilabelAveragePrecision):
    """Average precision, mean over the labels that occur: torchmetrics counts others as 0.

    torchmetrics also raises an error if all targets of a label are unknown. `update` takes
    probabilities (N, num_labels) float and targets (N, num_labels), -100 if unknown.
    """

    def compute(self) -> Tensor:  # type: ignore[override]
        """The mean; 0 if no label occurs."""
        preds, target = dim_zero_cat(self.preds), dim_zero_cat(self.target)  # (N, num_classes)
        occurs = (target == 1).any(dim=0)
        count = int(occurs.sum())
        if not count:
            return preds.new_zeros(())
        options: dict[str, Any] = {"average": "macro", **UNCHECKED}
        return multilabel_average_precision(preds[:, occurs], target[:, occurs], count, **options)


class MacroF1(MultilabelF1Score):
    """F1, mean over the labels that occur: torchmetrics counts others as 0. `update`: see `MacroAveragePrecision`."""

    def compute(self) -> Tensor:
        """The mean; 0 if no label occurs."""
        hits, wrong, missed = (dim_zero_cat(one).float() for one in (self.tp, self.fp, self.fn))  # (num_classes,)
        scores = 2 * hits / (2 * hits + wrong + missed).clamp(min=1)
        occurs = hits + missed > 0
        return (scores * occurs).sum() / occurs.sum().clamp(min=1)


class FirstCurves(MultilabelPrecisionRecallCurve):
    """Precision against recall of the first labels, a thousand samples at a time: each takes thresholds x labels."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add probabilities and targets, both (N, labels)."""
        count = self.num_labels
        for start in range(0, len(preds), 1000):
            super().update(preds[start : start + 1000, :count], target[start : start + 1000, :count])
