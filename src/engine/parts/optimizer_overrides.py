"""Lets a continued run change the arguments of its optimizer and schedule; `--retries` halves its learning rate."""

import re
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from src.engine.runs.checkpoint import LENGTHS
from src.engine.runs.runs import checkpoints_of, good_checkpoint
from src.engine.system.classes import Tree, short, walk
from src.engine.system.errors import InputError, check_least
from src.engine.training.checks import check_unchanged
from src.engine.training.finite_loss import NotFiniteError

UNWRITTEN_IF_ZERO = "retries"
NAN_ADVICE = "or retry at half the learning rate with --retries 3"

# Learning rates that a schedule keeps in the optimizer's parameter groups.
LEARNING_RATES = ("lr", "initial_lr", "max_lr", "min_lr")


def add_arguments(parser: Any) -> None:
    """Add the option to `src.train`."""
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        help="How often to retry at half the learning rate, from last.ckpt if there is one, after a NaN loss",
    )


def check_settings(config: Any, trains: bool) -> None:
    """Raise InputError if a run has no learning rate to halve, or is a trial of a search."""
    check_least(0, **{"--retries": config.retries})
    if trains and config.retries and config.optimizer is None:
        problem = "the learning rate of the model's own optimizer cannot be halved"
        raise InputError(f"--retries {config.retries}: {problem}: give --retries 0")


def check_trial(config: Any) -> None:
    """Raise InputError if a trial of a search would be retried."""
    if config.retries:
        raise InputError(f"--retries {config.retries}: a trial keeps its learning rate: give --retries 0")


def retry_arguments(cli: Any, error: NotFiniteError, args: list[str]) -> list[str]:
    """The command line to retry a run at half the learning rate, from its last checkpoint or from the beginning.

    Raises:
        NotFiniteError: no retries left or no learning rate to halve; the message names the last good checkpoint.
    """
    lr = (cli.config.get("optimizer") or {}).get("init_args", {}).get("lr")
    folder = cli.record.folder if cli.record else None
    last = good_checkpoint(folder)[0] if folder and any(checkpoints_of(folder)) else None
    if not cli.config.retries or lr is None:
        advice = "" if lr is None or "retries" in cli.given else f"; {NAN_ADVICE}"
        known = f". The last good checkpoint is {last}" if last else "; there is no checkpoint of this run yet"
        raise NotFiniteError(f"{error}{advice}{known}") from error
    left = cli.config.retries - 1
    start = last or cli.from_path or "the beginning"
    rank_zero_info(f"{error}. Retrying at half that rate from {start}, {left} retries left")
    rates = {"optimizer.lr": lr}
    if not last and not cli.from_path:  # else `OptimizerOverrides` scales all rates by the first one's factor
        settings = {key: cli.config.as_dict().get(key) for key in ("optimizer", "model")}
        numbers = {name: value for name, value in walk(settings) if isinstance(value, float | int)}
        rates |= {name: value for name, value in numbers.items() if re.search(r"[._](lr|learning_rate)$", name)}
    more = [f"--run={folder}", "--ckpt_path=last"] if last else []
    return [*args, *more, *(f"--{name}={rate / 2}" for name, rate in rates.items()), f"--retries={left}"]


class OptimizerOverrides(Callback):
    """Writes changed arguments into the optimizer and schedule state of a checkpoint before it is restored.

    A changed learning rate scales the learning rates of all parameter groups and of the schedule by the same factor, so
    the schedule keeps its shape.

    Args:
        saved: configuration of the run that wrote the checkpoint.
        now: configuration of this run.

    Raises:
        InputError: the saved state does not fit another class, or has no such argument; or a learning rate of the model
            has changed, which the restored optimizer would not notice.
    """

    def __init__(self, saved: Tree, now: Tree) -> None:
        changed = []
        for key in ("optimizer", "lr_scheduler"):
            old, new = saved.get(key), now.get(key)
            if new and (not old or old["class_path"] != new["class_path"]):
                was = short(old) if old else "none"
                problem = f"does not fit the state in the checkpoint, which is of {was}"
                raise InputError(f"--{key} {short(new)} {problem}: leave it out, or start a new run")
            before = _arguments(old)
            changed.append({name: value for name, value in _arguments(new).items() if value != before.get(name)})
        check_unchanged({"model": saved.get("model")}, {"model": now.get("model")})
        self.optimizer, self.lr_scheduler = changed
        path = str((now.get("lr_scheduler") or {}).get("class_path"))
        # This project's schedules compare the length in the checkpoint with their own.
        self.lengths = LENGTHS if path.startswith("src.engine.training.optim.") else ()
        self.before = _arguments(saved.get("optimizer"))
        self.lr_factor = self.optimizer.pop("lr") / self.before["lr"] if "lr" in self.optimizer else 1.0

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states: Any = checkpoint.get("optimizer_states")
        if states is None:  # sharded checkpoint: the optimizers are restored already
            states = [{"param_groups": optimizer.param_groups} for optimizer in trainer.optimizers]
        groups = [group for state in states for group in state["param_groups"]]
        has_groups = any("hidden" in group for group in groups)
        if has_groups and "weight_decay" in self.optimizer and not self.before.get("weight_decay"):
            problem = "its checkpoint does not separate biases and norms from other weights"
            raise InputError(
                f"--optimizer.weight_decay cannot be changed from 0 in a continued run, as {problem}: leave it out"
            )
        for group in groups:
            for name in LEARNING_RATES:
                if name in group:
                    group[name] *= self.lr_factor
            # A group with its own value, such as no weight decay, keeps it.
            shared = [name for name in self.optimizer if name in group and _plain(group[name]) == self.before.get(name)]
            group.update({name: self.optimizer[name] for name in shared})
        for name in self.optimizer:
            if not any(name in group for group in groups):
                raise InputError(f"--optimizer.{name} cannot be changed in a continued run: leave it out")
        for state in checkpoint["lr_schedulers"]:
            # `pct_start` is not in the state: a continued run computes OneCycleLR's phases again.
            if unknown := next((name for name in self.lr_scheduler if name not in {*state, "pct_start"}), None):
                raise InputError(f"--lr_scheduler.{unknown} cannot be changed in a continued run: leave it out")
            if "base_lrs" in state:
                state["base_lrs"] = [lr * self.lr_factor for lr in state["base_lrs"]]
            kept = [name for name in self.lr_scheduler if name in state and name not in self.lengths]
            state.update({name: self.lr_scheduler[name] for name in kept})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _arguments(spec: Tree | None) -> dict[str, Any]:
    return {name: _plain(value) for name, value in ((spec or {}).get("init_args") or {}).items()}
