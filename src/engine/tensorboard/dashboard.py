"""Combined charts for TensorBoard."""

import re
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from src.engine.system.metric_names import STAGE, final_names
from src.engine.tensorboard.writers import logged_step, writers

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

    _is_laid_out = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged = max(0, trainer.global_step + 1 - len(trainer.optimizers))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        step = trainer.global_step + 1  # with several optimizers, the first one may never have a multiple
        if not every or step // every == self._logged // every or optimizer is not trainer.optimizers[0]:
            return
        self._logged = step
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm: Any = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded model
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):  # it unscales in its step
            norm = norm / scaler.get_scale()
        for logger in trainer.loggers:
            logger.log_metrics({"train/grad_norm": norm.item()}, logged_step(trainer, pl_module, trainer.global_step))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_laid_out or trainer.sanity_checking or not trainer.is_global_zero:
            return
        self._is_laid_out = True
        both = joint_charts(final_names(trainer.callback_metrics))
        for writer in writers(trainer):
            writer.add_custom_scalars({"training and validation": both, "optimizer": OPTIMIZER})

    on_train_end = on_validation_end  # there may be no validation


def joint_charts(names: list[str]) -> dict[str, list[Any]]:
    """A chart for each validation metric, with the training metric of that name; other metrics have their own."""
    charts: dict[str, list[Any]] = {}
    for name in names:
        whole = name.partition("/dataloader_idx_")[0]
        stage = STAGE.search(whole)
        start, end = (whole[: stage.start()], whole[stage.end() :]) if stage else (whole, "")
        train = [f"^{re.escape(start)}[Tt]rain(ing)?{re.escape(end)}(_epoch)?$"] if stage else []
        title = (start + end).strip("/_.-") or name
        charts.setdefault(title, ["Multiline", train])[1].append(f"^{re.escape(name)}(_epoch)?$")
    return charts
