"""Sequence labelling: a class for each position."""

from typing import Any

import torch
from torch import Tensor

from src.engine.system.batches import Sample
from src.engine.tensorboard.figures import sequence_figure
from src.tasks.classifier import Batch, Classifier
from src.tasks.task import Task, names


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
        return self.net(*inputs).movedim(-1, 1)

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch, and the arguments of the metrics' `update`, one row per position."""
        *inputs, targets = batch
        loss, seen = super().step((*inputs, targets.view(len(targets), -1)))
        return loss, {**seen, "preds": seen["preds"].flatten(), "target": seen["target"].flatten()}

    def _evaluate(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        seen = Task._evaluate(self, stage, batch)
        return {"inputs": batch[0], "target": batch[-1], "preds": seen["preds"].view_as(batch[-1])}

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Labels (B, T) int64, and mask (B, T) bool, true for tokens; without a mask all positions are tokens."""
        labels = self(*inputs).argmax(dim=1)
        return {"labels": labels, "mask": inputs[1].bool() if len(inputs) > 1 else torch.ones_like(labels).bool()}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        """One label per token."""
        labels = names(labels, self.num_classes, type(self).__name__)
        return [
            {"labels": [labels[number] for number in row[mask].tolist()]}
            for row, mask in zip(predictions["labels"].cpu(), predictions["mask"].cpu(), strict=True)
        ]

    def figures(self, samples: list[Sample], labels: list[str]) -> dict[str, Any]:
        """True and predicted labels of sequences, as colours."""
        return {"sequences": sequence_figure(samples, self.label_names(self.num_classes))} if samples else {}
