"""The base class of all classification tasks."""

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
from src.tasks.task import Task, numbered

Batch = tuple[Tensor, ...]

# torchmetrics would check the targets of every batch; the loss already rejects classes that do not exist.
UNCHECKED: dict[str, Any] = {"validate_args": False, "ignore_index": IGNORED}

# Losses that get one-hot targets; all others get class numbers.
ONE_HOT_LOSSES = (nn.MSELoss, nn.BCEWithLogitsLoss)


class Classifier(Task):
    """Trains and tests a network that returns class logits; the base of `ImageClassifier` and `TextClassifier`.

    Args:
        net: the network, (B, ...) inputs -> (B, num_classes) float logits.
        loss: loss on logits and class numbers; `MSELoss` and `BCEWithLogitsLoss` get one-hot targets. Default: cross
            entropy.
        num_classes: number of classes; default: the network's `num_classes`.

    A batch is the network's inputs, then targets (B,) int64; in a padding batch all targets are -100. Logs
    `{train,val,test}/{loss,acc,f1}` once per epoch; accuracy is micro-averaged, F1 macro-averaged. `confusion` is the
    confusion matrix of the last validation or test, (num_classes, num_classes) int64, true classes in rows.

    Raises:
        InputError: `num_classes` is neither given nor an attribute of the network, or does not match the network or the
            data; or the loss is not a single number.
    """

    def __init__(self, net: nn.Module, loss: nn.Module | None = None, num_classes: int | None = None) -> None:
        net_classes = getattr(net, "num_classes", None)
        if net_classes and num_classes and net_classes != num_classes:
            raise InputError(
                f"num_classes {num_classes} does not fit {type(net).__name__}, which has {net_classes}: leave it out"
            )
        # Lets a checkpoint rebuild the network; the command line records its parsed arguments instead.
        saved = describe_arguments(type(self), net=net, loss=loss, num_classes=num_classes)
        num_classes = num_classes or net_classes
        if num_classes is None:
            raise InputError(
                f"{type(net).__name__} has no attribute num_classes: pass num_classes to {type(self).__name__}"
            )
        confusion = MulticlassConfusionMatrix(num_classes, **UNCHECKED)
        super().__init__(net, self.configure_metrics(num_classes), MetricCollection({"confusion": confusion}))
        self.save_hyperparameters(saved)
        self.num_classes = num_classes
        self.loss = loss or self.configure_loss()

    def configure_loss(self) -> nn.Module:
        """The default loss, on logits (B, num_classes) and targets (B,) int64."""
        return nn.CrossEntropyLoss()

    def configure_metrics(self, num_classes: int) -> MetricCollection:
        """The logged metrics; `update` takes `preds` and `target` (both (B,) int64), `value` (loss) and `weight`."""
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
        data_classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
        if data_classes is not None and data_classes != self.num_classes:
            raise InputError(
                f"the data has {data_classes} classes and {type(self.net).__name__} {self.num_classes}:"
                f" leave num_classes out, or give {data_classes}"
            )

    def forward(self, *inputs: Tensor) -> Tensor:
        """Network inputs -> logits (B, num_classes) float, or (B, num_classes, ...) for several targets per input."""
        logits: Tensor = self.net(*inputs)
        return logits

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch, and the arguments of the metrics' `update`."""
        return self._classify(batch)[:2]

    def count(self, targets: Tensor) -> Tensor | int:
        """The number of targets that the loss averages over."""
        return (targets != IGNORED).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Logits (B, num_classes) and targets (B,) of a batch, for callbacks."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Logits (B, num_classes) and targets (B,) of a batch, for callbacks."""
        return self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        loss, seen, logits = self._classify(batch)
        self.check((loss, seen))
        self.metrics.add(stage, seen)
        return {"logits": logits, "targets": batch[-1]}

    def _classify(self, batch: Batch) -> tuple[Tensor, dict[str, Any], Tensor]:
        loss: Tensor
        *inputs, targets = batch
        if targets.is_floating_point():
            raise InputError(
                f"targets are {targets.dtype}, {type(self).__name__} takes class numbers, int64: convert them; for"
                " numbers use Regressor, for several labels per input MultiLabelClassifier"
            )
        logits = self(*inputs)  # (B, num_classes, ...)
        self._check_shapes(logits, targets)
        weight: Tensor | int = len(targets)
        labels = targets
        if targets.ndim > 1 or (self._trainer is not None and self.trainer.world_size > 1):
            # A batch without targets, such as the padding of a process without data, has weight 0 and a finite loss.
            weight = self.count(targets)
            targets = torch.where(torch.as_tensor(weight > 0), targets, 0)
        if isinstance(self.loss, ONE_HOT_LOSSES):
            loss = self.loss(logits, F.one_hot(targets, self.num_classes).to(logits.dtype))
        else:
            loss = self.loss(logits, targets)
        if loss.ndim:
            shape = tuple(loss.shape)
            raise InputError(f"{type(self.loss).__name__} returns shape {shape}, not one value: use reduction mean")
        if targets.ndim > 1:
            loss = loss * (weight > 0)
        preds = logits.detach().argmax(dim=1)
        return loss, {"preds": preds, "target": labels, "value": loss.detach(), "weight": weight}, logits

    def _check_shapes(self, logits: Tensor, targets: Tensor) -> None:
        expected = (len(targets), self.num_classes, *targets.shape[1:])
        if logits.shape != expected:
            raise InputError(
                f"{type(self.net).__name__} returns shape {tuple(logits.shape)} for targets {tuple(targets.shape)}:"
                f" {type(self).__name__} with {self.num_classes} classes needs {expected}"
            )

    def on_fit_start(self) -> None:
        for name in ("net", "loss"):
            if name not in self.hparams:
                rank_zero_warn(
                    f"the arguments of {type(getattr(self, name)).__name__} cannot be read back from its attributes, so"
                    " a checkpoint cannot rebuild it: store each argument as an attribute of the same name, or load"
                    f" the checkpoint with {name}=..."
                )

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Labels (B,) int64 and probabilities (B, num_classes) float32."""
        probabilities = self(*inputs).float().softmax(dim=1)  # (B, num_classes)
        return {"labels": probabilities.argmax(dim=1), "probabilities": probabilities}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        """The likeliest class, and the probability of each."""
        return class_rows(predictions["probabilities"], labels)

    def configure_optimizers(self) -> Any:
        """AdamW (Loshchilov and Hutter 2019), unless the command line configures another optimizer."""
        return torch.optim.AdamW(self.parameters())


def class_rows(probabilities: Tensor, labels: list[str]) -> list[dict[str, Any]]:
    """The likeliest class and the probability of each, from probabilities (B, num_classes)."""
    names = labels or numbered(probabilities.shape[1])
    if len(names) != probabilities.shape[1]:
        raise InputError(f"the data has {len(names)} labels and the model {probabilities.shape[1]} classes")
    likeliest = probabilities.argmax(dim=1).tolist()
    return [
        {"label": names[index], "probabilities": dict(zip(names, row, strict=True))}
        for index, row in zip(likeliest, probabilities.float().tolist(), strict=True)
    ]
