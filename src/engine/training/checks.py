"""Checks before the first step: settings and callbacks that cannot work, and which metrics are monitored and when."""

import re
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.plugins import Precision
from torch import nn

from src.engine.data.loading import announce
from src.engine.system.classes import Tree, as_list, differences, import_class, nearest, walk
from src.engine.system.errors import InputError, check_least

DEFAULT_MONITOR = "val/loss"
FOLLOWED = "checkpoint.monitor"  # monitor of an EarlyStopping that watches what selects the best checkpoint
# Callbacks of Lightning that a run refuses, and why.
UNUSABLE: dict[type[Callback], str] = {
    callbacks.BatchSizeFinder: "changes the batch size after the schedule is made: give --data.batch_size",
    callbacks.LearningRateFinder: "sets an attribute lr of the model, but the optimizer's is used: give --optimizer.lr",
    callbacks.StochasticWeightAveraging: "sets the average after the last checkpoint is saved: give --config"
    " configs/callbacks/weight_averaging.yaml",
    callbacks.SpikeDetection: "of Lightning 2.6 cannot read its own state: leave it out; a NaN loss stops a run anyway",
}
# A metric with another name may be logged in training.
OF_EVALUATION = re.compile("(val|valid|validation|test)[/_]")


class MonitorCheck(Callback):
    """Raises InputError after the sanity check if a monitored metric named `val/...` or the like is not logged."""

    def __init__(self, best: Callback) -> None:
        self.best = best  # the ModelCheckpoint of `--checkpoint`, for messages

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged = sorted(trainer.callback_metrics)
        known = ", ".join(logged) or "nothing"
        plateaus: Any = [one for one in trainer.lr_scheduler_configs if one.reduce_on_plateau]
        for one in [*trainer.callbacks, *plateaus]:  # type: ignore[attr-defined]
            owner = "--checkpoint." if one is self.best else f"{type(getattr(one, 'scheduler', one)).__name__}: "
            of_name = re.findall(r"\{([^:}]+)", str(getattr(one, "filename", None)))  # metrics in names of checkpoints
            for key, metric in [("monitor", getattr(one, "monitor", None)), *(("filename", name) for name in of_name)]:
                if isinstance(metric, str) and metric not in logged and OF_EVALUATION.match(metric):
                    hint = f"{nearest(metric, logged)} (--trainer.num_sanity_val_steps 0 skips this check)"
                    raise InputError(f"{owner}{key} {metric}: validation logs {known}{hint}")


class TrainedCheck(Callback):
    """Warns of parameters that are trainable, but not in the optimizer, such as those unfrozen during training."""

    _has_warned = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx or self._has_warned or pl_module.device_mesh is not None:  # shards are other parameters
            return
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        held = {id(parameter) for group in groups for parameter in group["params"]}
        if left := [name for name, one in pl_module.named_parameters() if one.requires_grad and id(one) not in held]:
            self._has_warned = True
            way = "freeze them in on_train_start, not before, or return them in parameter_groups"
            names = f"{len(left)} parameters, such as {left[0]}"
            announce(f"{names}, are not in the optimizer and stay as they are: {way}")


def check_settings(config: Any, trains: bool) -> None:
    """Raise InputError if Lightning accepts a Trainer or checkpoint setting that would not do what it says."""
    trainer = config.trainer
    check_least(1, **{"--trainer.accumulate_grad_batches": trainer.accumulate_grad_batches})
    check_least(0, **{f"--{name}": config[name] for name in ("save_every_n_steps", "save_every_n_minutes")})
    if trainer.barebones:
        less = "--trainer.logger false, --trainer.enable_checkpointing false and --quiet"
        raise InputError(f"--trainer.barebones true: every run logs and saves; leave it out, and for less give {less}")
    if not trains:
        return
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer[name] == 0:
            raise InputError(f"--trainer.{name} 0 leaves nothing to train: give at least 1, or the stage test")
    for name, usual in {"check_val_every_n_epoch": "1", "val_check_interval": "1.0, once per epoch"}.items():
        if trainer[name] == 0 and trainer.limit_val_batches != 0:
            raise InputError(f"--trainer.{name} 0: give {usual}, or --trainer.limit_val_batches 0 for no validation")
    check_checkpoint_timing(config.checkpoint, trainer)


def check_unchanged(saved: Tree, now: Tree) -> None:
    """Raise InputError if a continued run changes what its restored optimizer and schedule would not notice.

    Arguments that only one of the two configurations has are ignored: a class may have got or lost them since.
    """
    changed: list[str] = []
    for key in ("optimizer", "lr_scheduler"):
        old, new = saved.get(key), now.get(key)
        if old and new:
            known, given = (one.get("init_args") or {} for one in (old, new))
            old = {**old, "init_args": known}
            new = {**new, "init_args": {name: value for name, value in given.items() if name in known}}
        changed += differences(old, new, key)
    old, new = (dict(walk({"model": tree.get("model")})) for tree in (saved, now))
    rates = [name for name in new if name in old and re.search(r"[._](lr|learning_rate)$", name)]
    changed += [f"--{name} {new[name]}" for name in rates if new[name] != old[name]]
    if changed:
        raise InputError(f"{changed[0]} cannot be changed in a continued run: leave it out")


def check_clocks(trainer: Any, processes: int) -> None:
    """Raise InputError if each of several processes would decide by its own clock when to validate."""
    if processes > 1 and not isinstance(trainer.val_check_interval, int | float | None):
        problem = f"the clocks of {processes} processes differ: give a number of batches"
        raise InputError(f"--trainer.val_check_interval {trainer.val_check_interval}: {problem}")


def validates(trainer: Trainer) -> bool:
    """Whether a run that trains has validation batches."""
    is_empty = trainer.val_dataloaders is not None and not sum(trainer.num_val_batches)
    return trainer.enable_validation and not is_empty


def changes_accumulation(trainer: Trainer) -> bool:
    """Whether a callback changes how many batches a step has, so that the Trainer cannot count the steps of a run."""
    kind = callbacks.GradientAccumulationScheduler
    return any(isinstance(one, kind) for one in trainer.callbacks)  # type: ignore[attr-defined]


def check_callbacks(given: list[Callback], model: LightningModule, trains: bool) -> None:
    """Raise InputError if a callback of the configuration cannot work."""
    for callback in given:
        for kind, reason in UNUSABLE.items():
            # A run of an earlier version with StochasticWeightAveraging may be tested.
            if isinstance(callback, kind) and (trains or kind is not callbacks.StochasticWeightAveraging):
                raise InputError(f"{type(callback).__name__} {reason}")
        has_backbone = isinstance(getattr(model, "backbone", None), nn.Module)
        if isinstance(callback, callbacks.BackboneFinetuning) and not has_backbone:
            way = f"add one in a subclass of {type(model).__name__}, or leave the callback out"
            raise InputError(f"BackboneFinetuning needs a task with the attribute backbone, a network: {way}")


def check_checkpoint_timing(checkpoint: Any, trainer: Any) -> None:
    """Raise InputError if the best checkpoint would be saved with the metric of other weights."""
    monitor, every = checkpoint.monitor, trainer.check_val_every_n_epoch
    if not monitor:
        return
    for name in ("every_n_train_steps", "train_time_interval"):
        if checkpoint[name]:
            way = "leave it out (--trainer.val_check_interval validates more often), or give --checkpoint.monitor null"
            problem = f"saves when --checkpoint.monitor {monitor} may not be new"
            raise InputError(f"--checkpoint.{name} {checkpoint[name]} {problem}: {way}")
    if trainer.val_check_interval in (None, 1.0) and every == 1:  # validation ends each epoch
        return
    at_epoch_end = "--checkpoint.save_on_train_epoch_end true"
    if monitor.startswith("val") and checkpoint.save_on_train_epoch_end:
        raise InputError(f"{at_epoch_end}: not every epoch ends with a new {monitor}: leave it out")
    if monitor.startswith("train") and not checkpoint.save_on_train_epoch_end:
        raise InputError(f"--checkpoint.monitor {monitor} is new at the end of an epoch only: give {at_epoch_end}")
    if (n := checkpoint.every_n_epochs) and every and n % every:
        way = f"give a multiple of {every}, such as {every * -(-n // every)}"
        raise InputError(
            f"--checkpoint.every_n_epochs {n} does not fit --trainer.check_val_every_n_epoch {every}: {way}"
        )


def has_precision_plugin(plugins: Any) -> bool:
    """Whether the Trainer settings name a precision plugin."""
    classes = [import_class(plugin.class_path) for plugin in as_list(plugins) if isinstance(plugin, Namespace)]
    return any(isinstance(cls, type) and issubclass(cls, Precision) for cls in classes)
