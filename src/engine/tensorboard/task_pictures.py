"""Shows a task's own figures after the test."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from src.engine.tensorboard.figures import Sample
from src.engine.tensorboard.writers import writers


class TaskPictures(Callback):
    """Writes the `figures` of a task to TensorBoard after the test, made from its first test samples."""

    def __init__(self) -> None:
        self._samples: list[Sample] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._samples = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        wanted = getattr(pl_module, "figure_samples", 0) - len(self._samples)
        if wanted > 0 and isinstance(outputs, dict) and {"preds", "target"} <= outputs.keys():
            parts: tuple[Tensor, ...] = (batch[0], outputs["target"], outputs["preds"])
            self._samples += zip(*(part[:wanted].detach().cpu() for part in parts), strict=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task: Any = pl_module
        if not hasattr(task, "figures") or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        everyone: list[Any] = [self._samples]
        if trainer.world_size > 1:
            everyone *= trainer.world_size
            torch.distributed.all_gather_object(everyone, self._samples)
        samples = [sample for part in everyone for sample in part][: task.figure_samples]
        labels = [str(one) for one in getattr(getattr(trainer, "datamodule", None), "labels", None) or ()]
        figures = task.figures(samples, labels)  # in all processes: it may compute metrics
        for writer in writers(trainer):
            for name, figure in figures.items():
                writer.add_figure(f"test/{name}", figure, trainer.global_step)
