"""Multi-label classification."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MultilabelF1Score

from src.engine.data.loading import IGNORED
from src.engine.system.batches import Sample
from src.engine.system.errors import InputError
from src.engine.tensorboard.figures import escape_dollars, new_figure
from src.tasks.classifier import UNCHECKED, check_classes, count_classes
from src.tasks.label_metrics import FirstCurves, MacroAveragePrecision, MacroF1
from src.tasks.task import Task, check_outputs
from src.tasks.weighted_bce import WeightedBCE

LISTED = 50  # labels whose F1 is logged one by one
MAX_CURVES = 20  # labels in one figure


class MultiLabelClassifier(Task):
    """Trains and tests a network that says for each of several labels whether it applies.

    Args:
        net: the network, (B, ...) inputs -> (B, num_classes) float logits.
        loss: mean loss on logits and targets (B, num_classes), both float. Default: binary cross entropy.
        num_classes: number of labels; default: the network's `num_classes`.
        threshold: a label applies if its probability is greater, in (0, 1).

    A batch is the network's inputs, then targets (B, num_classes) of 0 and 1; -100 or NaN where unknown. Logs
    `{train,val,test}/{loss,map,f1}`, mean average precision and macro F1 of the labels that occur, and `test/f1_LABEL`
    for each of up to 50 labels.

    Raises:
        InputError: an argument is out of range, or logits and targets do not have the shape (B, num_classes).
    """

    def __init__(
        self, net: nn.Module, loss: nn.Module | None = None, num_classes: int | None = None, threshold: float = 0.5
    ) -> None:
        if not 0 < threshold < 1:
            raise InputError(f"threshold {threshold} is out of range: give a probability between 0 and 1")
        if isinstance(loss, nn.CrossEntropyLoss):  # which would take the labels as shares of one class
            raise InputError(f"{type(loss).__name__} is for one class per input: leave it out, or give WeightedBCE")
        count = count_classes(type(self), net, num_classes)
        check_outputs(net, count)
        if isinstance(loss, WeightedBCE) and len(loss.label_weights) != count:
            raise InputError(f"label_weights {loss.label_weights}: give {count} numbers, one per label")
        unlogged: dict[str, Any] = {
            "f1": MultilabelF1Score(count, threshold, average=None, **UNCHECKED),
            "curves": FirstCurves(min(count, MAX_CURVES), thresholds=101, **UNCHECKED),
        }
        super().__init__(net, self.configure_metrics(count, threshold), MetricCollection(unlogged))
        self.save_arguments(net=net, loss=loss, num_classes=num_classes, threshold=threshold)
        self.num_classes = count
        self.threshold = threshold
        self.loss = loss or nn.BCEWithLogitsLoss()

    def configure_metrics(self, num_classes: int, threshold: float) -> MetricCollection:
        """The logged metrics; `update` takes `preds` (probabilities) and `target`, `value` (loss) and `weight`."""
        metrics: dict[str, Any] = {
            "loss": MeanMetric(),
            "map": MacroAveragePrecision(num_classes, average="macro", **UNCHECKED),
            "f1": MacroF1(num_classes, threshold, average="macro", **UNCHECKED),
        }
        return MetricCollection(metrics)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_classes(self, self.num_classes)

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch, and the arguments of the metrics' `update`."""
        inputs, targets = self.split_batch(batch)
        logits = self(*inputs)  # (B, num_classes)
        if not logits.shape == targets.shape == (len(targets), self.num_classes):
            raise InputError(
                f"{type(self.net).__name__} returns logits {tuple(logits.shape)} for targets {tuple(targets.shape)}:"
                f" {type(self).__name__} needs {(len(targets), self.num_classes)} for both"
            )
        self.check_targets(targets, 1, "1 where a label applies, 0 where not")
        known = targets >= 0  # false for -100 and NaN
        weight = known.sum()
        target = torch.where(known, targets, 0).to(logits.dtype)
        # Where a target is unknown, a very negative logit for a target of 0 adds nothing to the loss.
        loss = self.loss(torch.where(known, logits, -100.0), target) * (known.numel() / weight.clamp(min=1))
        preds = logits.detach().float().sigmoid()
        target = torch.where(known, target > 0.5, IGNORED)
        return loss, {"preds": preds, "target": target, "value": loss.detach(), "weight": weight}

    def log_metrics(self, stage: str) -> None:
        """Log the metrics, after the test also F1 of each label."""
        super().log_metrics(stage)
        if stage == "test" and self.num_classes <= LISTED:
            scores: Any = self.metrics.unlogged["f1"]
            by_label = zip(self.label_names(self.num_classes), scores.compute(), strict=True)
            self.log_dict({f"test/f1_{label}": score for label, score in by_label}, sync_dist=True)

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Probabilities (B, num_classes) float32."""
        return {"probabilities": self(*inputs).float().sigmoid()}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        """The labels that apply, and the probability of each."""
        labels = self.label_names(self.num_classes, labels)
        rows = [dict(zip(labels, row, strict=True)) for row in predictions["probabilities"].tolist()]
        return [
            {"labels": [label for label, value in row.items() if value > self.threshold], "probabilities": row}
            for row in rows
        ]

    def figures(self, samples: list[Sample], labels: list[str]) -> dict[str, Any]:
        """Precision against recall for each label."""
        curves: Any = self.metrics.unlogged["curves"]
        with curves.sync_context():
            return label_curves(curves.confmat.cpu(), self.label_names(self.num_classes))


def label_curves(counts: Tensor, labels: list[str]) -> dict[str, Any]:
    """Precision against recall of each label, from counts (thresholds, num_labels, 2, 2), targets in rows."""
    figure = new_figure(6, 5)
    axes = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    for number, label in enumerate(escape_dollars(labels[:MAX_CURVES])):
        _, fp, fn, tp = counts[:, number].flatten(1).double().unbind(dim=1)
        recall, precision = tp / (tp + fn).clamp(min=1), torch.where(tp + fp > 0, tp / (tp + fp).clamp(min=1), 1.0)
        axes.plot(recall.numpy(), precision.numpy(), label=label)
    axes.legend(fontsize=8)
    return {"precision and recall": figure}
