"""Shows a task's own figures after the test."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from src.engine.system.batches import Sample, gathered, labels_of
from src.engine.tensorboard.writers import writers


def callbacks(config: Any, stage: str | None) -> list[Callback]:
    """The callback of every run with a logger."""
    return [] if stage == "predict" or config.trainer.logger is False else [TaskPictures()]


class TaskPictures(Callback):
    """Writes the `figures` of a task to TensorBoard after the test, made from its first test samples.

    A sample is a row of those tensors `inputs`, `target` and `preds` that the task's `test_step` returns.
    """

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._samples: list[Sample] = []

    def on_test_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        wanted = getattr(pl_module, "figure_samples", 0) - len(self._samples)
        if wanted <= 0 or not isinstance(outputs, dict):
            return
        names = [name for name in ("inputs", "target", "preds") if name in outputs]
        if not all(isinstance(outputs[name], Tensor) for name in names):
            return
        rows = zip(*(outputs[name][:wanted].detach().cpu() for name in names), strict=True)
        self._samples += [dict(zip(names, row, strict=True)) for row in rows]

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not hasattr(pl_module, "figure_samples") or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        samples = [sample for part in gathered(self._samples) for sample in part][: pl_module.figure_samples]
        labels = labels_of(getattr(trainer, "datamodule", None))
        figures = pl_module.figures(samples, labels)  # in all processes: it may compute metrics
        for writer in writers(trainer):
            for name, figure in figures.items():
                writer.add_figure(f"test/{name}", figure, trainer.global_step)
