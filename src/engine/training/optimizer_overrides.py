"""Lets a continued run change its optimizer's and its schedule's arguments."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from src.engine.system.errors import InputError

Spec = dict[str, Any]

# What a learning-rate schedule keeps of the learning rate in the optimizer's parameter groups.
LEARNING_RATES = ("lr", "initial_lr", "max_lr", "min_lr")

# Arguments of a schedule that are not in its state, and of which a continued run makes its own: OneCycleLR's phases.
REMADE = ("pct_start",)


class OptimizerOverrides(Callback):
    """Carries arguments that differ from the checkpoint's into the state that the checkpoint restores.

    A changed learning rate scales all that the schedule derived from the old one, so that its shape stays, and those of
    all parameter groups alike.

    Args:
        saved: configuration of the run that wrote the checkpoint.
        now: configuration of this run.

    Raises:
        InputError: the optimizer or the schedule is of another class, so the saved state does not fit it, or an
            argument is not among those that an optimizer keeps.
    """

    def __init__(self, saved: Spec, now: Spec) -> None:
        for key in ("optimizer", "lr_scheduler"):
            old, new = saved.get(key), now.get(key)
            if new and (not old or old["class_path"] != new["class_path"]):
                names = [spec["class_path"].rpartition(".")[2] if spec else "none" for spec in (old, new)]
                raise InputError(
                    f"--{key} {names[1]} does not fit the state in the checkpoint, which is of {names[0]}:"
                    " leave it out, or train afresh"
                )
        self.optimizer = _changed_arguments(saved.get("optimizer"), now.get("optimizer"))
        self.lr_scheduler = _changed_arguments(saved.get("lr_scheduler"), now.get("lr_scheduler"))
        self.before = {
            name: _plain(value) for name, value in ((saved.get("optimizer") or {}).get("init_args") or {}).items()
        }
        self.lr_factor = 1.0
        if "lr" in self.optimizer:
            self.lr_factor = self.optimizer.pop("lr") / saved["optimizer"]["init_args"]["lr"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states: Any = checkpoint.get("optimizer_states")
        if states is None:  # sharded, and in the optimizers already
            states = [{"param_groups": optimizer.param_groups} for optimizer in trainer.optimizers]
        groups = [group for state in states for group in state["param_groups"]]
        for group in groups:
            for name in LEARNING_RATES:
                if name in group:
                    group[name] *= self.lr_factor
            # A group that has a value of its own, such as no weight decay, keeps it.
            shared = [name for name in self.optimizer if name in group and _plain(group[name]) == self.before.get(name)]
            group.update({name: self.optimizer[name] for name in shared})
        for name in self.optimizer:
            if not any(name in group for group in groups):
                raise InputError(f"--optimizer.{name} cannot be changed in a run that goes on: leave it out")
        for state in checkpoint["lr_schedulers"]:
            if unknown := next((name for name in self.lr_scheduler if name not in {*state, *REMADE}), None):
                raise InputError(f"--lr_scheduler.{unknown} cannot be changed in a run that goes on: leave it out")
            if "base_lrs" in state:
                state["base_lrs"] = [lr * self.lr_factor for lr in state["base_lrs"]]
            state.update({name: value for name, value in self.lr_scheduler.items() if name in state})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _changed_arguments(old: Spec | None, new: Spec | None) -> dict[str, Any]:
    if not old or not new:
        return {}
    before = old.get("init_args") or {}
    return {name: value for name, value in (new.get("init_args") or {}).items() if value != before.get(name)}
