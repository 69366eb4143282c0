"""The base class of all classification tasks."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from src.engine.data.loading import IGNORED
from src.engine.system.errors import InputError
from src.tasks.task import Task, check_outputs

Batch = tuple[Tensor, ...]

# torchmetrics would check the targets of every batch; the loss already rejects classes that do not exist.
UNCHECKED: dict[str, Any] = {"validate_args": False, "ignore_index": IGNORED}

MAX_CONFUSION = 1000  # classes of a confusion matrix: for 10,000 it would take gigabytes

# Losses that get one-hot targets; all others get class numbers.
ONE_HOT_LOSSES = (nn.MSELoss, nn.BCEWithLogitsLoss)


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
    """Use the weights of the arguments, not of a checkpoint: a continued run may change them."""
    state_dict[f"{prefix}weight"] = loss.weight.new_tensor(loss.class_weights)  # type: ignore[operator]


class Classifier(Task):
    """Trains and tests a network that returns class logits.

    Args:
        net: the network, (B, ...) inputs -> (B, num_classes) float logits.
        loss: loss on logits and class numbers; `MSELoss` and `BCEWithLogitsLoss` get one-hot targets. Default: cross
            entropy.
        num_classes: number of classes; default: the network's `num_classes`.

    A batch is the network's inputs, then targets (B,) int64; in a padding batch all targets are -100. Logs
    `{train,val,test}/{loss,acc,f1}` once per epoch; accuracy is micro-averaged, F1 macro-averaged. `confusion` is the
    confusion matrix of the last validation or test, (num_classes, num_classes) int64, true classes in rows; with
    more than 1,000 classes there is none, and there are no pictures of mistakes.

    Raises:
        InputError: `num_classes` is neither given nor an attribute of the network, or does not match the network or the
            data; the loss has another number of class weights; or the first targets are not class numbers.
    """

    def __init__(self, net: nn.Module, loss: nn.Module | None = None, num_classes: int | None = None) -> None:
        count = count_classes(type(self), net, num_classes)
        few = count <= MAX_CONFUSION
        unlogged = MetricCollection({"confusion": MulticlassConfusionMatrix(count, **UNCHECKED)} if few else {})
        super().__init__(net, self.configure_metrics(count), unlogged)
        self.save_arguments(net=net, loss=loss, num_classes=num_classes)
        self.num_classes = count
        self._logits: Tensor | None = None
        logged = self.metrics["val"].values()
        self._metrics_take_logits = any("logits" in inspect.signature(one.update).parameters for one in logged)
        self.loss = loss or self.configure_loss()
        if isinstance(self.loss, ONE_HOT_LOSSES):
            check_outputs(net, count)
        weights = getattr(self.loss, "class_weights", getattr(self.loss, "label_weights", None))
        if weights is not None and len(weights) != count:
            raise InputError(f"weights {weights} of the loss: give {count} numbers, one per class")

    def configure_loss(self) -> nn.Module:
        """The default loss, on logits (B, num_classes) and targets (B,) int64."""
        return nn.CrossEntropyLoss()

    def configure_metrics(self, num_classes: int) -> MetricCollection:
        """The logged metrics; `update` takes `preds` and `target` (both (B,) int64), `value` (loss) and `weight`.

        It may also take `logits`, (B, num_classes) float.
        """
        metrics: dict[str, Any] = {
            "loss": MeanMetric(),
            "acc": MulticlassAccuracy(num_classes, average="micro", **UNCHECKED),
            "f1": MulticlassF1Score(num_classes, average="macro", **UNCHECKED),
        }
        return MetricCollection(metrics)

    @property
    def confusion(self) -> MulticlassConfusionMatrix:
        """The confusion matrix of the last validation or test."""
        return self.metrics.unlogged["confusion"]  # type: ignore[return-value]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_classes(self, self.num_classes)
        ignored = getattr(self.loss, "ignore_index", None)
        if stage == "fit" and ignored not in (None, IGNORED):
            raise InputError(f"ignore_index {ignored}: only targets of {IGNORED} are ignored: remove ignore_index")

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch, and the arguments of the metrics' `update`."""
        loss: Tensor
        inputs, targets = self.split_batch(batch)
        logits = self(*inputs)  # (B, num_classes, ...)
        self._logits = None if self.training else logits.detach()
        self._check_targets(logits, targets)
        labels, weight = targets, self.count(targets)
        # A batch without targets, such as the padding of a process without data, has weight 0 and a loss of 0.
        targets = torch.where(torch.as_tensor(weight > 0), targets, 0)
        if isinstance(self.loss, ONE_HOT_LOSSES):
            if targets.ndim > 1:
                name = type(self.loss).__name__
                raise InputError(f"{name} takes one class per input, not {tuple(targets.shape)}: use CrossEntropyLoss")
            known = (labels != IGNORED)[:, None]
            target = F.one_hot(targets.where(known[:, 0], 0), self.num_classes).to(logits.dtype) * known
            if type(self.loss) in ONE_HOT_LOSSES and self.loss.reduction == "mean":
                # Unknown targets get a logit that adds no loss; selecting rows would wait for the device.
                fill = 0.0 if isinstance(self.loss, nn.MSELoss) else -100.0
                loss = self.loss(torch.where(known, logits, fill), target) * (len(known) / known.sum().clamp(min=1))
            else:
                rows = (known[:, 0] | ~known.any()).nonzero()[:, 0]
                loss = self.loss(logits[rows], target[rows])
        else:
            loss = self.loss(logits, targets)
        loss = loss * (weight > 0)
        preds = logits.detach().argmax(dim=1)
        more = {"logits": logits.detach()} if self._metrics_take_logits else {}
        return loss, {"preds": preds, "target": labels, "value": loss.detach(), "weight": weight, **more}

    def count(self, targets: Tensor) -> Tensor | int:
        """The number of targets that the loss averages over, or the sum of their weights."""
        counted = targets != IGNORED
        weight = self.loss.weight if isinstance(self.loss, nn.CrossEntropyLoss) else None
        return counted.sum() if weight is None else (weight[targets.where(counted, 0)] * counted).sum()

    def _evaluate(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """Update the metrics; returns logits (B, num_classes) and targets (B,), for callbacks."""
        self.metrics.add(stage, self.check(self.step(batch))[1])
        logits, self._logits = self._logits, None
        if logits is None or len(logits) != len(batch[-1]):  # by a step of one's own
            logits = self(*batch[:-1])
        return {"logits": logits, "targets": batch[-1]}

    def _check_targets(self, logits: Tensor, targets: Tensor) -> None:
        name = type(self).__name__
        if targets.dtype != torch.int64:
            raise InputError(
                f"targets are {targets.dtype}, {name} takes class numbers, int64: convert them, or use another"
                " task for numbers, or for several labels per input"
            )
        expected = (len(targets), self.num_classes, *targets.shape[1:])
        if logits.shape == expected[:2] != expected:
            raise InputError(
                f"targets have the shape {tuple(targets.shape)}: {name} takes one class number per input,"
                f" ({len(targets)},): give targets.squeeze(1), or of one-hot targets targets.argmax(1)"
            )
        if logits.shape != expected:
            raise InputError(
                f"{type(self.net).__name__} returns shape {tuple(logits.shape)} for targets {tuple(targets.shape)}:"
                f" {name} with {self.num_classes} classes needs {expected}"
            )
        self.check_targets(targets, self.num_classes - 1, f"0 to {self.num_classes - 1}")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (B, num_classes) float32, as the loss trains the logits."""
        logits = logits.float()
        chances = logits.softmax(dim=1)
        if isinstance(self.loss, ONE_HOT_LOSSES):  # logits trained to be 0 or 1 (MSE), or log-odds (BCE)
            each = logits.clamp(min=0) if isinstance(self.loss, nn.MSELoss) else logits.sigmoid()
            total = each.sum(dim=1, keepdim=True)
            chances = torch.where(total > 0, each / total, chances)
        return chances

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Labels (B,) int64 and probabilities (B, num_classes) float32."""
        probabilities = self.probabilities(self(*inputs))  # (B, num_classes)
        return {"labels": probabilities.argmax(dim=1), "probabilities": probabilities}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        """The likeliest class, and the probability of each."""
        return class_rows(self, predictions["probabilities"], labels)


def count_classes(task: type, net: nn.Module, num_classes: int | None) -> int:
    """The number of classes, given or from the network.

    Raises:
        InputError: it is in neither, or they differ.
    """
    own = getattr(net, "num_classes", None)
    if own and num_classes and own != num_classes:
        raise InputError(f"num_classes {num_classes} does not fit {type(net).__name__}, which has {own}: leave it out")
    count: int | None = num_classes or own
    if not count:
        raise InputError(f"{type(net).__name__} has no attribute num_classes: pass num_classes to {task.__name__}")
    return count


def check_classes(task: Task, num_classes: int) -> None:
    """Raise InputError if the data has another number of classes or labels than the network."""
    found = getattr(getattr(task.trainer, "datamodule", None), "num_classes", None)
    if found is not None and found != num_classes:
        way = f"leave num_classes out, or give {found}"
        if task.trainer.ckpt_path:
            way = "give data with the classes of the checkpoint, or train anew"
        raise InputError(f"the data has {found} classes and {type(task.net).__name__} {num_classes}: {way}")
    task.label_names(num_classes)


def class_rows(task: Task, probabilities: Tensor, labels: list[str]) -> list[dict[str, Any]]:
    """The likeliest class and the probability of each, from probabilities (B, num_classes)."""
    classes = task.label_names(probabilities.shape[1], labels)
    likeliest = probabilities.argmax(dim=1).tolist()
    return [
        {"label": classes[index], "probabilities": dict(zip(classes, row, strict=True))}
        for index, row in zip(likeliest, probabilities.float().tolist(), strict=True)
    ]
