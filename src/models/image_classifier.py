"""The task of telling which class an image belongs to."""

import inspect
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from src.errors import InputError

Batch = tuple[Tensor, Tensor]

# Losses that compare with one value per class; all others get class numbers.
ONE_HOT_LOSSES = (nn.MSELoss, nn.BCEWithLogitsLoss)


class ImageClassifier(LightningModule):
    """Trains and tests any network that maps images to class logits.

    Args:
        net: the network, (B, C, H, W) float -> (B, num_classes) float logits.
        loss: of logits and class numbers; `MSELoss` and `BCEWithLogitsLoss` get one-hot targets. Cross
            entropy where nothing is given; mean squared error on one-hot targets trains as well (Hui and
            Belkin 2021).
        num_classes: number of classes; where nothing is given, the network's own `num_classes`.

    Logs `{train,val,test}/{loss,acc,f1}` once an epoch, and `train/loss_step`; accuracy is micro-averaged,
    F1 macro-averaged.

    Raises:
        InputError: the number of classes is neither given nor an attribute of the network, or is both and differs.
    """

    def __init__(self, net: nn.Module, loss: nn.Module | None = None, num_classes: int | None = None) -> None:
        super().__init__()
        # So that the checkpoint rebuilds its network by itself; the command line records what it parsed instead.
        self.save_hyperparameters(_describe_arguments(type(self), net=net, loss=loss, num_classes=num_classes))
        own = getattr(net, "num_classes", None)
        if own and num_classes and own != num_classes:
            raise InputError(f"num_classes {num_classes} does not fit {type(net).__name__}, which has {own}; give one")
        num_classes = num_classes or own
        if num_classes is None:
            raise InputError(f"{type(net).__name__} has no attribute num_classes: give ImageClassifier its num_classes")
        self.num_classes = num_classes
        # Convolutions run about 1.4 times faster on a CPU, and on tensor cores, with channels last.
        self.net = net.to(memory_format=torch.channels_last)
        self.loss = loss or nn.CrossEntropyLoss()
        metrics = MetricCollection(
            {
                "loss": MeanMetric(),
                "acc": MulticlassAccuracy(num_classes, average="micro"),
                "f1": MulticlassF1Score(num_classes, average="macro"),
            }
        )
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float images -> (B, num_classes) float logits."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._step(batch, self.train_metrics)
        self.log("train/loss_step", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._step(batch, self.test_metrics)

    def on_fit_start(self) -> None:
        for name in ("net", "loss"):
            if name not in self.hparams:
                rank_zero_warn(
                    f"the arguments of {type(getattr(self, name)).__name__} cannot be read back from its attributes, so"
                    " a checkpoint will not rebuild it: keep each argument as an attribute of its own name, or load"
                    f" the checkpoint with {name}=..."
                )

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> dict[str, Tensor]:
        """Labels (B,) int64 and probabilities (B, num_classes) float32 of images, with or without targets."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        probabilities = self(images).float().softmax(dim=1)  # (B, num_classes)
        return {"labels": probabilities.argmax(dim=1), "probabilities": probabilities}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW (Loshchilov and Hutter 2019) where no optimizer is configured, as in plain Python use."""
        return torch.optim.AdamW(self.parameters())

    def _step(self, batch: Batch, metrics: MetricCollection) -> Tensor:
        loss: Tensor
        images, targets = batch
        logits = self(images)  # (B, num_classes)
        if isinstance(self.loss, ONE_HOT_LOSSES):
            loss = self.loss(logits, F.one_hot(targets, self.num_classes).to(logits.dtype))
        else:
            loss = self.loss(logits, targets)
        metrics.update(preds=logits.detach(), target=targets, value=loss.detach(), weight=len(targets))
        self.log_dict(metrics, on_step=False, on_epoch=True)
        return loss


def _describe_arguments(task: type, **arguments: Any) -> dict[str, Any]:
    """The arguments of a task that can be had as plain values, in the form in which LightningCLI stores them."""
    described: dict[str, Any] = {"_class_path": f"{task.__module__}.{task.__qualname__}"}
    described["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
    for name, value in arguments.items():
        if not isinstance(value, nn.Module):
            described[name] = value
        elif (description := _describe_module(value)) is not None:
            described[name] = description
    return described


def _describe_module(module: nn.Module) -> dict[str, Any] | None:
    """Class and arguments of a module whose attributes carry its arguments, or None where they do not."""
    cls = type(module)
    init_args = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and not hasattr(module, name) and cls.__module__.startswith("torch."):
            continue  # torch keeps all but its deprecated arguments
        value = getattr(module, name, _MISSING)
        if not named or not _is_plain(value):
            return None
        init_args[name] = list(value) if isinstance(value, tuple) else value
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}


_MISSING = object()


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
