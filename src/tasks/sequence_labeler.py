"""Sequence labelling: a class for each position."""

from typing import Any

import torch
from torch import Tensor

from src.engine.system.batches import Sample
from src.engine.tensorboard.figures import class_colours, class_legend, new_figure
from src.tasks.classifier import Batch, Classifier
from src.tasks.task import Task

MAX_POSITIONS = 120  # of a sequence in a figure


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
        inputs, targets = self.split_batch(batch)
        loss, seen = super().step((*inputs, targets.view(len(targets), -1)))
        seen |= {name: seen[name].flatten() for name in ("preds", "target")}
        if "logits" in seen:
            seen["logits"] = seen["logits"].movedim(1, -1).flatten(0, 1)  # (B * T, num_classes)
        return loss, seen

    def _evaluate(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        seen = Task._evaluate(self, stage, batch)
        return {"inputs": batch[0], "target": batch[-1], "preds": seen["preds"].view_as(batch[-1])}

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Labels (B, T) int64, and mask (B, T) bool, true for tokens; without a mask all positions are tokens."""
        labels = self(*inputs).argmax(dim=1)
        return {"labels": labels, "mask": inputs[1].bool() if len(inputs) > 1 else torch.ones_like(labels).bool()}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        """One label per token."""
        labels = self.label_names(self.num_classes, labels)
        return [
            {"labels": [labels[number] for number in row[mask].tolist()]}
            for row, mask in zip(predictions["labels"].cpu(), predictions["mask"].cpu(), strict=True)
        ]

    def figures(self, samples: list[Sample], labels: list[str]) -> dict[str, Any]:
        """True and predicted labels of sequences, as colours."""
        return {"sequences": sequence_figure(samples, self.label_names(self.num_classes))} if samples else {}


def sequence_figure(samples: list[Sample], labels: list[str]) -> Any:
    """True and predicted labels of each sequence as two rows of coloured cells; unlabelled positions are white."""
    length = min(MAX_POSITIONS, max(len(sample["target"]) for sample in samples))
    cells = torch.full((3 * len(samples), length), torch.nan)
    for row, sample in enumerate(samples):
        target = sample["target"][:length]
        for offset, name in enumerate(("target", "preds")):
            labelled = torch.where(target < 0, torch.nan, sample[name][:length].float())
            cells[3 * row + offset, : len(target)] = labelled
    figure = new_figure(2 + 0.08 * length, 1 + 0.4 * len(samples))
    axes = figure.add_subplot(xlabel="position", title="true above predicted")
    axes.imshow(cells.numpy(), **class_colours(len(labels)), aspect="auto")
    axes.set_yticks([])
    class_legend(figure, labels)
    return figure
