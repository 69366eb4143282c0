"""What all classification tasks share: loss, metrics, predictions."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from src.errors import InputError
from src.models.hyperparameters import check_limits, describe_arguments

Batch = tuple[Tensor, ...]

# Losses that compare with one value per class; all others get class numbers.
ONE_HOT_LOSSES = (nn.MSELoss, nn.BCEWithLogitsLoss)


class Classifier(LightningModule):
    """Trains and tests a network that gives class logits; `ImageClassifier` and `TextClassifier` are it.

    Args:
        net: the network, (B, ...) inputs -> (B, num_classes) float logits.
        loss: of logits and class numbers; `MSELoss` and `BCEWithLogitsLoss` get one-hot targets. Cross
            entropy where nothing is given.
        num_classes: number of classes; where nothing is given, the network's own `num_classes`.

    A batch is the network's inputs and, last, targets (B,) int64. Logs `{train,val,test}/{loss,acc,f1}` once an
    epoch, and `train/loss_step`; accuracy is micro-averaged, F1 macro-averaged. `confusion` holds the confusion
    matrix of the last validation or test, (num_classes, num_classes) int64, true classes in rows.

    Raises:
        InputError: the number of classes is neither given nor an attribute of the network, or it is not the data's.
    """

    def __init__(self, net: nn.Module, loss: nn.Module | None = None, num_classes: int | None = None) -> None:
        super().__init__()
        # So that the checkpoint rebuilds its network by itself; the command line records what it parsed instead.
        self.save_hyperparameters(describe_arguments(type(self), net=net, loss=loss, num_classes=num_classes))
        own = getattr(net, "num_classes", None)
        if own and num_classes and own != num_classes:
            raise InputError(f"num_classes {num_classes} does not fit {type(net).__name__}, which has {own}; give one")
        num_classes = num_classes or own
        if num_classes is None:
            raise InputError(
                f"{type(net).__name__} has no attribute num_classes: give {type(self).__name__} its num_classes"
            )
        self.num_classes = num_classes
        self.net = net
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
        self.confusion = MulticlassConfusionMatrix(num_classes)

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        check_limits(self.net, data)
        have = getattr(data, "num_classes", None)
        if have is not None and have != self.num_classes:
            raise InputError(
                f"the data has {have} classes and {type(self.net).__name__} {self.num_classes}: leave num_classes out,"
                f" or give {have}"
            )

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs of the network -> (B, num_classes) float logits."""
        logits: Tensor = self.net(*inputs)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, _ = self._step(batch, self.train_metrics)
        self.log("train/loss_step", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.confusion.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        _, logits = self._step(batch, self.val_metrics)
        self.confusion.update(logits, batch[-1])

    def on_test_epoch_start(self) -> None:
        self.confusion.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        _, logits = self._step(batch, self.test_metrics)
        self.confusion.update(logits, batch[-1])

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

    def _step(self, batch: Batch, metrics: MetricCollection) -> tuple[Tensor, Tensor]:
        loss: Tensor
        *inputs, targets = batch
        logits = self(*inputs)  # (B, num_classes)
        if isinstance(self.loss, ONE_HOT_LOSSES):
            loss = self.loss(logits, F.one_hot(targets, self.num_classes).to(logits.dtype))
        else:
            loss = self.loss(logits, targets)
        metrics.update(preds=logits.detach(), target=targets, value=loss.detach(), weight=len(targets))
        self.log_dict(metrics, on_step=False, on_epoch=True)
        return loss, logits.detach()
