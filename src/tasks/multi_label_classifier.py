"""The task of choosing any number of labels for each input."""

from typing import Any

from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    MultilabelAveragePrecision,
    MultilabelF1Score,
    MultilabelPrecisionRecallCurve,
)

from src.engine.data.loading import IGNORED
from src.engine.system.errors import InputError
from src.engine.tensorboard.figures import Sample, label_curves
from src.engine.training.hyperparameters import describe_arguments
from src.tasks.task import Task, numbered

LISTED = 50  # labels whose F1 is logged one by one


class MultiLabelClassifier(Task):
    """Trains and tests a network that says for each of several labels whether it applies.

    Args:
        net: the network, (B, ...) inputs -> (B, num_classes) float logits.
        loss: loss on logits and targets (B, num_classes), both float. Default: binary cross entropy.
        num_classes: number of labels; default: the network's `num_classes`.
        threshold: smallest probability at which a label applies, in (0, 1).

    A batch is the network's inputs, then targets (B, num_classes) of 0 and 1. Logs `{train,val,test}/{loss,map,f1}`,
    mean average precision and macro F1, and `test/f1_LABEL` for each label.

    Raises:
        InputError: an argument is out of range, or targets do not have the shape of the logits.
    """

    figure_samples = 0

    def __init__(
        self, net: nn.Module, loss: nn.Module | None = None, num_classes: int | None = None, threshold: float = 0.5
    ) -> None:
        if not 0 < threshold < 1:
            raise InputError(f"threshold {threshold} is out of range: give a probability between 0 and 1")
        saved = describe_arguments(type(self), net=net, loss=loss, num_classes=num_classes, threshold=threshold)
        num_classes = num_classes or getattr(net, "num_classes", None)
        if num_classes is None:
            raise InputError(
                f"{type(net).__name__} has no attribute num_classes: pass num_classes to {type(self).__name__}"
            )
        options: dict[str, Any] = {"num_labels": num_classes, "ignore_index": IGNORED, "validate_args": False}
        unlogged: dict[str, Metric | MetricCollection] = {
            "f1": MultilabelF1Score(average=None, threshold=threshold, **options),
            "curves": MultilabelPrecisionRecallCurve(thresholds=101, **options),
        }
        super().__init__(net, self.configure_metrics(num_classes, threshold), MetricCollection(unlogged))
        self.save_hyperparameters(saved)
        self.num_classes = num_classes
        self.threshold = threshold
        self.loss = loss or self.configure_loss()

    def configure_loss(self) -> nn.Module:
        """The default loss, on logits and targets (B, num_classes), both float."""
        return nn.BCEWithLogitsLoss()

    def configure_metrics(self, num_classes: int, threshold: float) -> MetricCollection:
        """The logged metrics; `update` takes `preds` (probabilities) and `target`, `value` (loss) and `weight`."""
        options: dict[str, Any] = {"num_labels": num_classes, "ignore_index": IGNORED, "validate_args": False}
        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanMetric(),
            "map": MultilabelAveragePrecision(average="macro", **options),
            "f1": MultilabelF1Score(average="macro", threshold=threshold, **options),
        }
        return MetricCollection(metrics)

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch, and the arguments of the metrics' `update`."""
        *inputs, targets = batch
        logits = self(*inputs)  # (B, num_classes)
        if logits.shape != targets.shape:
            raise InputError(
                f"{type(self.net).__name__} returns logits {tuple(logits.shape)} and the targets are"
                f" {tuple(targets.shape)}: give (B, {self.num_classes}) for both"
            )
        targets = targets.nan_to_num(IGNORED)  # in a padding batch of a process without data
        loss = self.loss(logits, targets.clamp(min=0).to(logits.dtype))
        probabilities = logits.detach().float().sigmoid()
        weight = (targets != IGNORED).all(dim=1).sum()
        return loss, {"preds": probabilities, "target": targets.long(), "value": loss.detach(), "weight": weight}

    def log_metrics(self, stage: str) -> None:
        """Log the metrics, after the test also F1 of each label."""
        super().log_metrics(stage)
        if stage == "test" and self.num_classes <= LISTED:
            scores: Any = self.metrics.unlogged["f1"]
            names = self.label_names(self.num_classes)
            self.log_dict({f"test/f1_{name}": one for name, one in zip(names, scores.compute(), strict=True)})

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Probabilities (B, num_classes) float32."""
        return {"probabilities": self(*inputs).float().sigmoid()}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        """The labels that apply, and the probability of each."""
        names = labels or numbered(self.num_classes)
        return [
            {
                "labels": [name for name, value in zip(names, row, strict=True) if value >= self.threshold],
                "probabilities": dict(zip(names, row, strict=True)),
            }
            for row in predictions["probabilities"].tolist()
        ]

    def figures(self, samples: list[Sample], labels: list[str]) -> dict[str, Any]:
        """Precision over recall for each label."""
        curves: Any = self.metrics.unlogged["curves"]
        with curves.sync_context():
            return label_curves(curves.confmat.cpu(), labels or numbered(self.num_classes))
