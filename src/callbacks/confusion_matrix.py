"""Shows which classes are taken for which."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from src.errors import InputError


class ConfusionMatrix(Callback):
    """After a test, writes the confusion matrix to `confusion_matrix.csv` and TensorBoard's text page.

    True classes stand in rows, predicted ones in columns, under the data's own labels.

    Raises:
        InputError: the model is no classifier.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "confusion"):
            raise InputError("ConfusionMatrix needs a classifier: leave it out here")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task: Any = pl_module
        counts: list[list[int]] = task.confusion.compute().tolist()  # every process takes part in this
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        data = getattr(trainer, "datamodule", None)
        labels = getattr(data, "labels", None) or [str(number) for number in range(len(counts))]
        rows = [
            ["true \\ predicted", *labels],
            *([label, *map(str, row)] for label, row in zip(labels, counts, strict=True)),
        ]
        with (Path(trainer.default_root_dir) / "confusion_matrix.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
        table = [f"| {' | '.join(row)} |" for row in rows]
        table.insert(1, "| --- " * len(rows[0]) + "|")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("test/confusion", "\n".join(table), trainer.global_step)
