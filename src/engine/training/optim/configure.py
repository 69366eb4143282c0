"""Optimizer and schedule from configuration, built when the Trainer asks for them."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import ReduceLROnPlateau, instantiate_class
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.model_helpers import is_overridden

from src.engine.system.errors import InputError

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
    built: torch.optim.Optimizer = _build(trained, _fused(optimizer, module))
    if "fused" in built.defaults:
        built.register_load_state_dict_pre_hook(_keep_fused)
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


def _fused(spec: Spec, module: LightningModule) -> Spec:
    """One kernel for all parameters, where this is left open: as exact, and faster.

    In mixed precision Lightning does not clip the gradients of a fused optimizer, and torch has none for sparse ones.
    """
    init_args = spec.get("init_args") or {}
    taken = init_args.get("fused", False) is not None or init_args.get("foreach") or init_args.get("differentiable")
    trainer: Any = module.trainer
    clips = (
        trainer.gradient_clip_val
        or not module.automatic_optimization
        or is_overridden("configure_gradient_clipping", module)
    ) and isinstance(trainer.precision_plugin, MixedPrecision)
    sparse = any(getattr(part, "sparse", False) for part in module.modules())
    if taken or clips or sparse or trainer.strategy.root_device.type not in ("cpu", "cuda"):
        return spec
    return {**spec, "init_args": {**init_args, "fused": True}}


def _keep_fused(optimizer: torch.optim.Optimizer, state: Spec) -> Spec:
    """A checkpoint does not say how this run steps: it may clip now, or have another device."""
    groups = [{**group, "fused": optimizer.defaults["fused"]} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def _build(first: Any, spec: Spec) -> Any:
    try:
        return instantiate_class(first, spec)
    except (ValueError, TypeError, ArithmeticError) as error:
        if not spec["class_path"].startswith(("torch.", "src.optim.", "lightning.")):
            raise
        raise InputError(f"{spec['class_path'].rpartition('.')[2]} does not take its arguments: {error}") from error


def _run_length(module: LightningModule, interval: str) -> int:
    trainer = module.trainer
    length = trainer.max_epochs if interval == "epoch" else trainer.estimated_stepping_batches
    if length is None or length in (-1, float("inf")):
        raise InputError("the learning-rate schedule needs the run's length: give --max_epochs or --trainer.max_steps")
    return int(length)
