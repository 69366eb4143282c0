"""Shows the mistakes of a classifier."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics.classification import MulticlassPrecisionRecallCurve

from src.engine.system.batches import gathered, labels_of
from src.engine.system.errors import check_least
from src.engine.system.randomness import counting
from src.engine.tensorboard.figures import draw_image, escape_dollars, new_figure
from src.engine.tensorboard.writers import writers

WORST = 16  # number of mistakes shown
THRESHOLDS = 101  # per precision-recall curve
MAX_CURVES = 50  # precision-recall curves, one per class
MAX_CLASSES = 100  # of a confusion matrix drawn as a figure; the CSV file has all classes


Mistake = tuple[float, int, int, Tensor]  # confidence, target, prediction, inputs


def callbacks(config: Any, stage: str | None) -> list[Callback]:
    """The callback of every run with a logger."""
    return [] if stage == "predict" or config.trainer.logger is False else [EvaluationPictures()]


class EvaluationPictures(Callback):
    """Shows a classifier's confusion matrix, most confident mistakes and precision-recall curves after an evaluation.

    Class names come from the DataModule's `labels`. The confusion matrix, with true classes in rows, is also written to
    `confusion_matrix.csv` in the run folder. Does nothing for models that are not classifiers.

    Args:
        every_n_epochs: also show them after validation, once in this many epochs; 0: never.
    """

    def __init__(self, every_n_epochs: int = 0) -> None:
        check_least(0, every_n_epochs=every_n_epochs)
        self.every_n_epochs = every_n_epochs
        self._curves: Any = None
        self._worst: list[Mistake] = []

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._worst = []
        unlogged = getattr(getattr(pl_module, "metrics", None), "unlogged", ())
        if "confusion" in unlogged and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            options: dict[str, Any] = {"ignore_index": pl_module.confusion.ignore_index, "validate_args": False}
            curves = MulticlassPrecisionRecallCurve(pl_module.num_classes, thresholds=THRESHOLDS, **options)
            self._curves = curves.to(pl_module.confusion.device)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._curves = None
        is_due = bool(self.every_n_epochs) and not (trainer.current_epoch + 1) % self.every_n_epochs
        if trainer.state.fn == TrainerFn.VALIDATING or (is_due and not trainer.sanity_checking):
            self.on_test_start(trainer, pl_module)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._curves is None or not isinstance(outputs, dict) or "logits" not in outputs:
            return  # a task may override its steps
        probabilities = pl_module.probabilities(outputs["logits"])  # (B, num_classes)
        targets = outputs["targets"]  # (B,)
        with counting():
            self._curves.update(probabilities.to(self._curves.device), targets.to(self._curves.device))
        confidences, preds = probabilities.max(dim=1)
        if targets.ndim != 1 or not isinstance(batch[0], Tensor):
            return  # no single input per mistake
        wrong = ((preds != targets) & (targets != self._curves.ignore_index)).nonzero()[:, 0]
        for index in wrong[confidences[wrong].argsort(descending=True)[:WORST]].tolist():
            inputs = batch[0][index]
            mask = batch[1]
            if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == batch[0].shape:  # of a text
                inputs = inputs[mask[index]]
            values = float(confidences[index]), int(targets[index]), int(preds[index])
            self._worst.append((*values, inputs.detach().cpu()))
        self._worst = _most_confident(self._worst)

    on_validation_batch_end = on_test_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self._curves is None:
            return
        stage = "test" if trainer.testing else "val"
        # All processes must call these.
        counts = pl_module.confusion.compute().cpu()
        with self._curves.sync_context():
            curves = self._curves.confmat.cpu()  # (thresholds, num_classes, 2, 2): targets in rows
        everyone = gathered(self._worst)
        self._curves = None
        if not trainer.is_global_zero:
            return
        is_seen = bool(curves.sum())  # a task may override its steps
        worst = _most_confident([mistake for part in everyone for mistake in part])
        data: Any = getattr(trainer, "datamodule", None)
        labels = labels_of(data) or [str(number) for number in range(len(counts))]
        if stage == "test":
            path = Path(trainer.default_root_dir) / "confusion_matrix.csv"
            with path.open("w", encoding="utf-8", newline="") as file:
                rows = [[label, *row] for label, row in zip(labels, counts.tolist(), strict=True)]
                csv.writer(file).writerows([["true \\ predicted", *labels], *rows])
        step = trainer.global_step
        for writer in writers(trainer):
            if len(labels) <= MAX_CLASSES:
                writer.add_figure(f"{stage}/confusion matrix", confusion_figure(counts, labels), step)
            if worst and worst[0][3].ndim == 3:
                writer.add_figure(f"{stage}/worst mistakes", _image_grid(worst, labels), step)
            elif worst:
                decode = getattr(getattr(data, "tokenizer", None), "decode", _first_values)
                writer.add_text(f"{stage}/worst mistakes", _table(worst, labels, decode), step)
            for number, label in enumerate(labels[:MAX_CURVES] if is_seen else ()):
                _add_curve(writer, f"{stage}/precision and recall/{label}", curves[:, number], step)

    on_validation_end = on_test_end


def _most_confident(mistakes: list[Mistake]) -> list[Mistake]:
    return sorted(mistakes, key=lambda mistake: -mistake[0])[:WORST]


def confusion_figure(counts: Tensor, labels: list[str]) -> Any:
    """A matplotlib figure of a confusion matrix, (num_classes, num_classes), each row shaded by its share."""
    labels = escape_dollars(labels)
    size = 2 + 0.42 * len(labels)
    figure = new_figure(size, size)
    axes = figure.subplots()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90 if max(map(len, labels)) > 2 else 0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row, column in counts.nonzero().tolist():
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", fontsize=7, color=colour)
    return figure


def _image_grid(worst: list[Mistake], labels: list[str]) -> Any:
    """Images in rows of four, all on one pair of axes: one pair per image would take a second or more to draw."""
    from matplotlib.figure import Figure  # lazy import: it takes 0.25 s

    labels = escape_dollars(labels)
    width, height = 2.0, 2.3  # of a cell, in inches: up to 1.7 for the image, the rest for its title
    figure = Figure(figsize=(4 * width, -(-len(worst) // 4) * height))
    axes = figure.add_axes((0, 0, 1, 1))
    for position, (confidence, target, pred, image) in enumerate(worst):
        down, right = (1.7 / max(image.shape[1:]) * size for size in image.shape[1:])
        x, y = (position % 4 + 0.5) * width, (position // 4 + 1) * height - 0.1  # centre of the image's lower edge
        draw_image(axes, image, extent=(x - right / 2, x + right / 2, y, y - down))
        title = f"{labels[target]} predicted as {labels[pred]}\nconfidence {confidence:.0%}"
        axes.text(x, y - down - 0.04, title, ha="center", va="bottom", fontsize=9)
    axes.set(xlim=(0, figure.get_figwidth()), ylim=(figure.get_figheight(), 0), aspect="auto")
    return figure


def _table(worst: list[Mistake], labels: list[str], decode: Callable[[list[Any]], str]) -> str:
    rows = ["| confidence | true | predicted | input |", "| --- | --- | --- | --- |"]
    for confidence, target, pred, inputs in worst:
        texts = (labels[target], labels[pred], decode(inputs.flatten().tolist()))
        cells = (" ".join(text.split()).replace("|", "\\|") for text in texts)
        rows.append(f"| {confidence:.0%} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _first_values(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:8]) + (" ..." if len(values) > 8 else "")


def _add_curve(writer: Any, tag: str, counts: Tensor, step: int) -> None:
    """Add a precision-recall curve from counts (thresholds, 2, 2), targets in rows."""
    tn, fp, fn, tp = counts.flatten(1).double().unbind(dim=1)
    precision, recall = tp / (tp + fp).clamp(min=1), tp / (tp + fn).clamp(min=1)
    columns = [one.numpy() for one in (tp, fp, tn, fn, precision, recall)]
    writer.add_pr_curve_raw(tag, *columns, global_step=step, num_thresholds=len(counts))
