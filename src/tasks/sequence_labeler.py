"""The task of assigning a class to each position of a sequence."""

from typing import Any

from torch import Tensor

from src.engine.tensorboard.figures import Sample, sequence_figure
from src.tasks.classifier import Batch, Classifier
from src.tasks.task import numbered


class SequenceLabeler(Classifier):
    """Trains and tests a network that assigns a class to each position of a sequence.

    Args:
        net: the network, tokens (B, T) int64 and mask (B, T) bool, true for tokens -> (B, T, num_classes) float logits.
        loss: loss on logits (B, num_classes, T) and class numbers. Default: cross entropy.
        num_classes: number of classes; default: the network's `num_classes`.

    A batch is tokens, mask and targets (B, T) int64, -100 for padding and positions without a label. Logs
    `{train,val,test}/{loss,acc,f1}` over all labelled positions.
    """

    figure_samples = 12

    def forward(self, *inputs: Tensor) -> Tensor:
        """Network inputs -> logits (B, num_classes, T) float."""
        logits: Tensor = self.net(*inputs).movedim(-1, 1)
        return logits

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch, and the arguments of the metrics' `update`, one row per position."""
        loss, seen = super().step(batch)
        return loss, {**seen, "preds": seen["preds"].flatten(), "target": seen["target"].flatten()}

    def _evaluate(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        seen = self.check(self.step(batch))[1]
        self.metrics.add(stage, seen)
        return {"preds": seen["preds"].view_as(batch[-1]), "target": batch[-1]}

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Labels (B, T) int64, and mask (B, T) bool, true for tokens."""
        return {"labels": self(*inputs).argmax(dim=1), "mask": inputs[1].bool()}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        """One label per token."""
        names = labels or numbered(self.num_classes)
        return [
            {"labels": [names[number] for number in row[mask].tolist()]}
            for row, mask in zip(predictions["labels"], predictions["mask"], strict=True)
        ]

    def figures(self, samples: list[Sample], labels: list[str]) -> dict[str, Any]:
        """True and predicted labels of sequences, as colours."""
        return {"sequences": sequence_figure(samples, labels or numbered(self.num_classes))} if samples else {}
