"""Callbacks, loggers and plugins that every run has in addition to those of its configuration."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler

from src.engine.runs.checkpoint import WholeCheckpointIO
from src.engine.runs.last_checkpoint import LastCheckpoint
from src.engine.system.classes import as_list, import_class
from src.engine.system.interruption import Interruption
from src.engine.tensorboard.dashboard import Dashboard
from src.engine.tensorboard.evaluation_pictures import EvaluationPictures
from src.engine.tensorboard.network_pictures import NetworkPictures
from src.engine.tensorboard.task_pictures import TaskPictures
from src.engine.training.finite_loss import FiniteLoss
from src.engine.training.network_summary import NetworkSummary
from src.engine.training.progress_bar import PacedProgressBar, ProgressLines
from src.engine.training.step_seeds import StepSeeds
from src.engine.training.throughput import Throughput

Options = dict[str, Any]  # arguments of the Trainer


class NoProfiler(PassThroughProfiler):
    """Cheaper than Lightning's default, which creates a generator in each of about ninety calls per step."""

    _nothing = nullcontext()

    def profile(self, *_: Any, **__: Any) -> Any:
        return self._nothing


def add_default_callbacks(options: Options, stage: str | None, quiet: bool) -> None:
    """Add default callbacks, profiler and checkpoint plugin, each unless the configuration has its own."""
    callbacks = options["callbacks"]  # extended in place
    if options["logger"] is False:  # LearningRateMonitor raises an error without a logger
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    elif stage != "predict":
        defaults = tensorboard_callbacks(stage, options["log_every_n_steps"])
        callbacks += [callback for callback in defaults if not _has(callbacks, type(callback))]
    if quiet:
        options["enable_progress_bar"] = options["enable_model_summary"] = False
    if options["enable_progress_bar"] is not False and not _has(callbacks, ProgressBar):
        callbacks.append(PacedProgressBar() if sys.stdout.isatty() else ProgressLines())
    if options["enable_model_summary"] is not False and not _has(callbacks, ModelSummary):
        callbacks.append(NetworkSummary())
        options["enable_model_summary"] = False  # instead of Lightning's
    callbacks += [StepSeeds(), FiniteLoss()]
    options["profiler"] = options["profiler"] or NoProfiler()
    plugins = options["plugins"] = as_list(options["plugins"])
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(WholeCheckpointIO())


def tensorboard_callbacks(stage: str | None, log_every_n_steps: int | None) -> list[Callback]:
    """The callbacks that write to TensorBoard."""
    network, evaluation = NetworkPictures(after_test=stage is None), EvaluationPictures()
    callbacks: list[Callback] = [Dashboard(), LearningRateMonitor(), network, evaluation, TaskPictures()]
    return callbacks if log_every_n_steps == 0 else [*callbacks, Throughput()]


def checkpoint_callbacks(
    best: ModelCheckpoint, folder: Path, interruption: Interruption, every_n_steps: int, every_n_minutes: float
) -> tuple[ModelCheckpoint, LastCheckpoint]:
    """The callbacks that save `best.ckpt`, as configured, and `last.ckpt` in a folder."""
    best.dirpath = best.dirpath or str(folder)
    best.filename = best.filename or ("best" if best.save_top_k in (0, 1) else "best-{epoch}-{step}")
    return best, LastCheckpoint(folder, interruption, every_n_steps, every_n_minutes)


def loggers(specs: list[Any], folder: Path, purge_step: int | None) -> list[Logger]:
    """The TensorBoard logger and those of the configuration, for which `save_dir: .` is the run folder.

    TensorBoard discards old values from `purge_step` on: a continued run logs them again.
    """
    made: list[Logger] = []
    for spec in specs:
        arguments = dict(spec.get("init_args") or {})
        if arguments.get("save_dir") == ".":
            arguments["save_dir"] = str(folder)
        made.append(import_class(spec.class_path)(**arguments))
    if not any(isinstance(one, TensorBoardLogger) for one in made):
        names = (folder.parents[1], folder.parent.name, folder.name)
        made.insert(0, TensorBoardLogger(*names, default_hp_metric=False, purge_step=purge_step))
    return made


def _has(callbacks: list[Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
