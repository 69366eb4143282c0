"""Builds optimizer and schedule from the configuration when the Trainer asks for them."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.cli import ReduceLROnPlateau, instantiate_class
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from src.engine.runs.checkpoint import LENGTHS
from src.engine.system.errors import InputError
from src.engine.training.checks import OF_EVALUATION

Spec = dict[str, Any]


def configure_optimizers(module: LightningModule, optimizer: Spec, scheduler: Spec | None, interval: str) -> Spec:
    """The return value of `LightningModule.configure_optimizers`.

    Args:
        module: a task with a Trainer. Its `parameter_groups()` are optimized if it has that method, else all its
            trainable parameters.
        optimizer: `class_path` and `init_args` of an optimizer.
        scheduler: the same for a learning-rate schedule, or None. `total_steps` or `T_max` left at None becomes the
            run's length.
        interval: `step` or `epoch`, how often the schedule moves; `ReduceLROnPlateau` always moves by epoch.

    Raises:
        InputError: the schedule needs the run's length but the run has no end, or torch rejects an argument.
    """
    groups = getattr(module, "parameter_groups", None)
    trained = groups() if groups else [one for one in module.parameters() if one.requires_grad]
    built: torch.optim.Optimizer = _build(trained, _fused(optimizer, module))
    if any("fused" in group for group in built.param_groups):
        built.register_load_state_dict_pre_hook(_keep_fused)
    if scheduler is None:
        return {"optimizer": built}
    init_args = dict(scheduler.get("init_args") or {})
    for name in LENGTHS:
        if name in init_args and init_args[name] is None and not init_args.get("epochs"):
            init_args[name] = _run_length(module, interval)
    schedule = _build(built, {"class_path": scheduler["class_path"], "init_args": init_args})
    if isinstance(schedule, ReduceLROnPlateau):
        # It moves when its metric is new, and waits for the first one.
        every = module.trainer.check_val_every_n_epoch
        moves = {"frequency": every or 1, "strict": every is not None} if OF_EVALUATION.match(schedule.monitor) else {}
        return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "monitor": schedule.monitor, **moves}}
    return {"optimizer": built, "lr_scheduler": {"scheduler": schedule, "interval": interval}}


def check_replaced(module: LightningModule, name: str) -> None:
    """Report that the optimizer `name` replaces those of a module's own `configure_optimizers`.

    Raises:
        InputError: the module steps these itself.
    """
    own = type(module).configure_optimizers
    if not is_overridden("configure_optimizers", module) or getattr(own, "is_default", False):
        return
    line = f"{name} replaces {type(module).__name__}.configure_optimizers"
    if not module.automatic_optimization:
        raise InputError(
            f"{line}, whose optimizers its training_step uses (manual optimization): give --optimizer null"
        )
    rank_zero_info(f"{line}: give --optimizer null to use the model's own")


def _fused(spec: Spec, module: LightningModule) -> Spec:
    """Make the optimizer fused, which is faster and as exact, unless its options are given or it would not work.

    In mixed precision Lightning cannot clip for it, and it rejects sparse gradients and complex numbers.
    """
    init_args = spec.get("init_args") or {}
    trainer: Any = module.trainer
    clips = trainer.gradient_clip_val or not module.automatic_optimization
    clips = clips or is_overridden("configure_gradient_clipping", module)
    # For shards, torch fuses only these.
    is_known = module.device_mesh is None or spec["class_path"].rpartition(".")[2] in ("Adam", "AdamW")
    reasons_not_to = (
        init_args.get("fused", False) is not None or init_args.get("foreach") or init_args.get("differentiable"),
        clips and isinstance(trainer.precision_plugin, MixedPrecision),
        any(getattr(part, "sparse", False) for part in module.modules()),
        any(parameter.is_complex() for parameter in module.parameters()),
        not is_known,
        trainer.strategy.root_device.type not in ("cpu", "cuda"),
    )
    return spec if any(reasons_not_to) else {**spec, "init_args": {**init_args, "fused": True}}


def _keep_fused(optimizer: torch.optim.Optimizer, state: Spec) -> Spec:
    """Keep this run's `fused`, not the checkpoint's: this run may clip gradients or use another device.

    Fused steps do not check sizes, so a state of other sizes would let them write anywhere in memory.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    keys = [key for group in state["param_groups"] for key in group["params"]]  # names with FSDP2, else numbers
    for key, parameter in zip(keys, parameters, strict=False):
        values = state["state"].get(key, {})
        for name, value in values.items():
            if not isinstance(value, torch.Tensor) or value.ndim == 0:
                continue
            if value.shape != parameter.shape:
                raise InputError(f"the checkpoint's {name} of {tuple(value.shape)} does not fit its weights")
            if value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter).copy_(value)
    groups = [{**group} for group in state["param_groups"]]
    for group, own in zip(groups, optimizer.param_groups, strict=False):
        if "fused" in own:
            group["fused"] = own["fused"]
    return {**state, "param_groups": groups}


def _build(first: Any, spec: Spec) -> Any:
    try:
        return instantiate_class(first, spec)
    except (ValueError, TypeError, ArithmeticError) as error:
        if not spec["class_path"].startswith(("torch.", "src.engine.", "lightning.")):
            raise
        raise InputError(f"{spec['class_path'].rpartition('.')[2]} does not take its arguments: {error}") from error


def _run_length(module: LightningModule, interval: str) -> int:
    """Length of the run in steps or epochs, as the schedule counts; `max_steps` may end it in an earlier epoch."""
    trainer: Any = module.trainer
    limits = (trainer.max_steps, trainer.max_epochs)
    max_steps, max_epochs = (math.inf if limit in (None, -1) else limit for limit in limits)
    if max_steps < math.inf or (interval == "step" and max_epochs < math.inf):
        trainer.fit_loop.setup_data()  # counts the batches
    batches, steps, epochs = trainer.num_training_batches, max_steps, max_epochs
    if batches == 0:
        raise InputError("the training part has no batch: give more data, or a smaller --data.batch_size")
    if batches < math.inf and min(max_steps, max_epochs) < math.inf:
        changing = next((one for one in trainer.callbacks if isinstance(one, GradientAccumulationScheduler)), None)
        steps = epochs = 0
        while steps < max_steps and epochs < max_epochs:
            every = changing.get_accumulate_grad_batches(epochs) if changing else trainer.accumulate_grad_batches
            steps, epochs = steps + math.ceil(batches / every), epochs + 1
    length = epochs if interval == "epoch" else min(steps, max_steps)
    if length == math.inf:
        known = "--max_epochs or --trainer.max_steps"
        if interval == "step" and batches == math.inf:  # the loader has no length
            known = "--trainer.max_steps or --trainer.limit_train_batches"
        raise InputError(f"the learning-rate schedule needs the run's length: give {known}")
    return int(length)
