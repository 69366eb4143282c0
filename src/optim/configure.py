"""Optimizer and schedule from configuration, built when the Trainer asks for them."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import ReduceLROnPlateau, instantiate_class

from src.errors import InputError

Spec = dict[str, Any]


def configure_optimizers(module: LightningModule, optimizer: Spec, scheduler: Spec | None, interval: str) -> Spec:
    """What `LightningModule.configure_optimizers` returns, for the parameters the module has by then.

    Args:
        module: a task inside of a run; its `parameter_groups()`, where it has them, are what is optimized, else all
            its parameters that are trained.
        optimizer: `class_path` and `init_args` of an optimizer.
        scheduler: the same of a learning-rate schedule, or None. Its `total_steps` or `T_max` is the run's
            length where it is left at None.
        interval: `step` or `epoch`, how often the schedule moves; `ReduceLROnPlateau` always moves by epoch.

    Raises:
        InputError: the schedule needs the run's length and the run has no end, or torch refuses an argument.
    """
    groups = getattr(module, "parameter_groups", None)
    trained = groups() if groups else [parameter for parameter in module.parameters() if parameter.requires_grad]
    built: torch.optim.Optimizer = _build(trained, optimizer)
    if scheduler is None:
        return {"optimizer": built}
    init_args = dict(scheduler.get("init_args") or {})
    for name in ("total_steps", "T_max"):
        if name in init_args and init_args[name] is None and not init_args.get("epochs"):
            init_args[name] = _run_length(module, interval)
    schedule = _build(built, {"class_path": scheduler["class_path"], "init_args": init_args})
    if isinstance(schedule, ReduceLROnPlateau):
        return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "monitor": schedule.monitor}}
    return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "interval": interval}}


def _build(first: Any, spec: Spec) -> Any:
    try:
        return instantiate_class(first, spec)
    except (ValueError, TypeError) as error:
        if not spec["class_path"].startswith(("torch.", "src.optim.", "lightning.")):
            raise
        raise InputError(f"{spec['class_path'].rpartition('.')[2]} does not take its arguments: {error}") from error


def _run_length(module: LightningModule, interval: str) -> int:
    trainer = module.trainer
    length = trainer.max_epochs if interval == "epoch" else trainer.estimated_stepping_batches
    if length is None or length in (-1, float("inf")):
        raise InputError("the learning-rate schedule needs the run's length: give --max_epochs or --trainer.max_steps")
    return int(length)
