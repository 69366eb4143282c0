"""Combined charts for TensorBoard."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from src.engine.tensorboard.writers import writers

OPTIMIZER = {
    "learning rate": ["Multiline", ["^lr-.*"]],
    "gradient norm": ["Multiline", ["^train/grad_norm$"]],
    "samples per second": ["Multiline", ["^speed/samples_per_second$"]],
}


def callbacks(config: Any, stage: str | None) -> list[Callback]:
    """The callback of every run with a logger."""
    return [] if stage == "predict" or config.trainer.logger is False else [Dashboard()]


class Dashboard(Callback):
    """Shows training and validation in one chart per metric, and logs the gradient norm.

    `train/grad_norm` is the norm of all gradients together, before clipping, at every log step. The charts are on
    TensorBoard's page CUSTOM SCALARS.
    """

    def __init__(self) -> None:
        self._is_laid_out = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (trainer.global_step + 1) % every or optimizer is not trainer.optimizers[0]:
            return
        norm: Any = torch.nn.utils.get_total_norm(
            [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        )
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded model
        for logger in trainer.loggers:
            logger.log_metrics({"train/grad_norm": norm.item()}, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_laid_out or trainer.sanity_checking or not trainer.is_global_zero:
            return
        self._is_laid_out = True
        names = sorted(name.removeprefix("val/") for name in trainer.callback_metrics if name.startswith("val/"))
        both = {name: ["Multiline", [f"^train/{name}$", f"^val/{name}$"]] for name in names}
        for writer in writers(trainer):
            writer.add_custom_scalars({"training and validation": both, "optimizer": OPTIMIZER})
