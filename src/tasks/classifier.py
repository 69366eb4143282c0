"""What all classification tasks share: loss, metrics, predictions."""

from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from src.engine.data.loading import IGNORED
from src.engine.system.errors import InputError
from src.engine.training.hyperparameters import describe_arguments
from src.tasks.task import Task

Batch = tuple[Tensor, ...]

# The loss has seen whether the classes exist; torchmetrics would check every batch.
UNCHECKED: dict[str, Any] = {"validate_args": False, "ignore_index": IGNORED}

# Losses that compare with one value per class; all others get class numbers.
ONE_HOT_LOSSES = (nn.MSELoss, nn.BCEWithLogitsLoss)


class Classifier(Task):
    """Trains and tests a network that gives class logits; `ImageClassifier` and `TextClassifier` are it.

    Args:
        net: the network, (B, ...) inputs -> (B, num_classes) float logits.
        loss: of logits and class numbers; `MSELoss` and `BCEWithLogitsLoss` get one-hot targets. Cross
            entropy where nothing is given.
        num_classes: number of classes; where nothing is given, the network's own `num_classes`.

    A batch is the network's inputs and, last, targets (B,) int64, all of them -100 where it is padding. Logs
    `{train,val,test}/{loss,acc,f1}` once an epoch; accuracy is micro-averaged, F1 macro-averaged. `confusion` holds the
    confusion matrix of the last validation or test, (num_classes, num_classes) int64, true classes in rows.

    Raises:
        InputError: the number of classes is neither given nor an attribute of the network, or it is not the data's; the
            loss is not one number.
    """

    def __init__(self, net: nn.Module, loss: nn.Module | None = None, num_classes: int | None = None) -> None:
        own = getattr(net, "num_classes", None)
        if own and num_classes and own != num_classes:
            raise InputError(f"num_classes {num_classes} does not fit {type(net).__name__}, which has {own}; give one")
        # So that a checkpoint rebuilds its network; the command line records what it has parsed instead.
        saved = describe_arguments(type(self), net=net, loss=loss, num_classes=num_classes)
        num_classes = num_classes or own
        if num_classes is None:
            raise InputError(
                f"{type(net).__name__} has no attribute num_classes: give {type(self).__name__} its num_classes"
            )
        confusion = MulticlassConfusionMatrix(num_classes, **UNCHECKED)
        super().__init__(net, self.configure_metrics(num_classes), MetricCollection({"confusion": confusion}))
        self.save_hyperparameters(saved)
        self.num_classes = num_classes
        self.loss = loss or self.configure_loss()

    def configure_loss(self) -> nn.Module:
        """The loss, unless one is given: of logits (B, num_classes) and targets (B,) int64."""
        return nn.CrossEntropyLoss()

    def configure_metrics(self, num_classes: int) -> MetricCollection:
        """The metrics that are logged; `update` takes `preds`, `target` (both (B,) int64), `value` and `weight`."""
        metrics: dict[str, Metric | MetricCollection] = {
            "loss": MeanMetric(),
            "acc": MulticlassAccuracy(num_classes, average="micro", **UNCHECKED),
            "f1": MulticlassF1Score(num_classes, average="macro", **UNCHECKED),
        }
        return MetricCollection(metrics)

    @property
    def confusion(self) -> MulticlassConfusionMatrix:
        """The confusion matrix of the last validation or test."""
        found: Any = self.metrics.unlogged["confusion"]
        matrix: MulticlassConfusionMatrix = found
        return matrix

    def setup(self, stage: str) -> None:
        super().setup(stage)
        have = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
        if have is not None and have != self.num_classes:
            raise InputError(
                f"the data has {have} classes and {type(self.net).__name__} {self.num_classes}: leave num_classes out,"
                f" or give {have}"
            )

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs of the network -> (B, num_classes) float logits."""
        logits: Tensor = self.net(*inputs)
        return logits

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch, and predictions and targets for the metrics."""
        return self._classify(batch)[:2]

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Logits (B, num_classes) and targets (B,) of a batch, for callbacks."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Logits (B, num_classes) and targets (B,) of a batch, for callbacks."""
        return self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        _, seen, logits = self._classify(batch)
        self.metrics.add(stage, seen)
        return {"logits": logits, "targets": batch[-1]}

    def _classify(self, batch: Batch) -> tuple[Tensor, dict[str, Any], Tensor]:
        loss: Tensor
        *inputs, targets = batch
        logits = self(*inputs)  # (B, num_classes)
        weight: Tensor | int = len(targets)
        labels = targets
        if self._trainer is not None and self.trainer.world_size > 1:
            # A process that has nothing left computes on padding, and does not count.
            weight = (targets != IGNORED).sum()
            targets = targets.clamp(min=0)
        if isinstance(self.loss, ONE_HOT_LOSSES):
            loss = self.loss(logits, F.one_hot(targets, self.num_classes).to(logits.dtype))
        else:
            loss = self.loss(logits, targets)
        if loss.ndim:
            shape = tuple(loss.shape)
            raise InputError(f"{type(self.loss).__name__} gives {shape} values: a loss is one, as with reduction mean")
        preds = logits.detach().argmax(dim=1)
        return loss, {"preds": preds, "target": labels, "value": loss.detach(), "weight": weight}, logits

    def on_fit_start(self) -> None:
        for name in ("net", "loss"):
            if name not in self.hparams:
                rank_zero_warn(
                    f"the arguments of {type(getattr(self, name)).__name__} cannot be read back from its attributes, so"
                    " a checkpoint will not rebuild it: keep each argument as an attribute of its own name, or load"
                    f" the checkpoint with {name}=..."
                )

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Labels (B,) int64 and probabilities (B, num_classes) float32 of a batch, or of bare inputs."""
        inputs = (batch,) if isinstance(batch, Tensor) else batch[:-1]
        probabilities = self(*inputs).float().softmax(dim=1)  # (B, num_classes)
        return {"labels": probabilities.argmax(dim=1), "probabilities": probabilities}

    def configure_optimizers(self) -> Any:
        """AdamW (Loshchilov and Hutter 2019) where no optimizer is configured, as in plain Python use."""
        return torch.optim.AdamW(self.parameters())
