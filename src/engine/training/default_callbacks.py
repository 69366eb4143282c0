"""Callbacks, loggers and plugins that every run has in addition to those of its configuration."""

import re
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, LearningRateMonitor, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from src.engine.runs.checkpoint import WholeCheckpointIO, best_states
from src.engine.system.classes import as_list, import_class
from src.engine.system.errors import InputError
from src.engine.system.hooks import hooks
from src.engine.system.randomness import derive_seed, run_seed, step_position
from src.engine.training.checks import OF_EVALUATION, MonitorCheck, validates
from src.engine.training.finite_loss import FiniteLoss

MAX_NAME = 200  # characters of a checkpoint's file name


class DataWaitProfiler(PassThroughProfiler):
    """Measures how long training waits for data.

    Cheaper than Lightning's default, which creates a generator in each of about ninety calls per step.
    """

    _nothing = nullcontext()
    _since = 0.0
    waited = 0.0
    """Seconds in which training waited for data."""

    def profile(self, *_: Any, **__: Any) -> Any:
        return self._nothing

    def start(self, action_name: str) -> None:
        self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.waited += time.perf_counter() - self._since


class StepSeeds(Callback):
    """Reseeds torch's generators before every training step, and again between steps.

    Dropout and augmentation then depend only on seed, epoch, batch and process: a run that is continued in the middle
    of an epoch draws the same numbers as one that was never stopped.
    """

    _seed = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._seed = run_seed()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reseed(trainer, between=1)

    on_train_epoch_start = on_train_start

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._reseed(trainer, between=0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._reseed(trainer, between=1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._reseed(trainer, between=1)

    def _reseed(self, trainer: Trainer, between: int) -> None:
        seed = derive_seed(self._seed, *step_position(trainer), between)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed is slower: it checks every kind of device
        kind = trainer.strategy.root_device.type
        if kind != "cpu" and hasattr(torch, kind):  # torch has no module for some devices, such as TPUs
            getattr(torch, kind).manual_seed(seed)


class AverageOnDevice(Callback):
    """Moves the averages of WeightAveraging to the device of the weights, or to their own.

    Lightning 2.6.6 makes them before the weights are moved: on a GPU each step would copy all weights to the CPU.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for one in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(one, WeightAveraging) and one._average_model is not None:
                one._average_model.to(pl_module.device if one._device is None else one._device)


def add_default_callbacks(options: dict[str, Any], stage: str | None, quiet: bool, best: ModelCheckpoint) -> None:
    """Add default callbacks, profiler and checkpoint plugin, each unless the configuration has its own."""
    callbacks = options["callbacks"]  # extended in place
    if options["logger"] is False:  # LearningRateMonitor raises an error without a logger
        callbacks[:] = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    elif stage != "predict":
        add_missing(callbacks, [LearningRateMonitor()])
    if quiet:
        options["enable_progress_bar"] = options["enable_model_summary"] = False
    for adjust_trainer in hooks("adjust_trainer"):
        adjust_trainer(options)
    callbacks += [StepSeeds(), FiniteLoss(), MonitorCheck(best), AverageOnDevice()]
    options["profiler"] = options["profiler"] or DataWaitProfiler()
    plugins = options["plugins"] = as_list(options["plugins"])
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(WholeCheckpointIO())


def add_missing(callbacks: list[Callback], more: list[Callback]) -> None:
    """Add callbacks of classes that are not in a list yet."""
    callbacks += [one for one in more if not any(isinstance(other, type(one)) for other in callbacks)]


class ModuleCheckpoints(Callback):
    """Gives the ModelCheckpoints that a module adds the folder of the run, and names that can be written.

    Without validation the last checkpoint is the best, unless its metric is logged in training.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for one in trainer.checkpoint_callbacks:
            if isinstance(one, ModelCheckpoint):
                is_elsewhere = str(one.dirpath) != str(self.folder)
                _prepare(one, "ModelCheckpoint", saves=stage == "fit" and is_elsewhere, may_have_files=True)
                one.dirpath = one.dirpath or str(self.folder)
        if isinstance(trainer.checkpoint_callback, ModelCheckpoint):
            _save_whole(trainer.checkpoint_callback, "ModelCheckpoint")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = trainer.checkpoint_callback
        if not isinstance(best, ModelCheckpoint) or best.monitor or validates(trainer):
            return
        if best._save_on_train_epoch_end is None:
            best._save_on_train_epoch_end = True  # with check_val_every_n_epoch it would wait for a validation
        if not best._every_n_train_steps:
            best.save_top_k = min(best.save_top_k, 1)  # Lightning would keep all of them

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = trainer.checkpoint_callback
        monitor = getattr(best, "monitor", None)
        if not monitor or monitor in trainer.callback_metrics or validates(trainer):
            return
        if isinstance(best, ModelCheckpoint) and OF_EVALUATION.match(monitor):
            rank_zero_info(f"The best checkpoint is the last one, as there is no validation to log {monitor}")
            best.monitor = None
            self.on_train_start(trainer, pl_module)


def own_checkpoint(callbacks: list[Callback], checkpoint: dict[str, Any]) -> ModelCheckpoint | None:
    """The ModelCheckpoint of the configuration that chooses the best checkpoint, if there is one.

    If the `checkpoint` that is continued or tested has more ModelCheckpoints, none of these chooses.
    """
    found = [one for one in callbacks if isinstance(one, ModelCheckpoint)]
    able = (one for one in found if one.monitor and not one.save_weights_only and "://" not in str(one.dirpath))
    return next(able, None) if len(best_states(checkpoint)) <= len(found) else None


def prepare_checkpoints(best: ModelCheckpoint, callbacks: list[Callback], is_continued: bool, saves: bool) -> None:
    """Check the file names of checkpoints, of `--checkpoint` (`best`) and `--trainer.callbacks`; make their folders."""
    best.filename = best.filename or ("best" if best.save_top_k in (0, 1) else "best-{epoch}-{step}")
    if best.save_top_k not in (0, 1) and "{" in best.filename and "{step" not in best.filename:
        best.filename += "-{step}"  # else a worse checkpoint could replace a better one of the same epoch
    _save_whole(best, "--checkpoint")
    if "://" in str(best.dirpath):
        way = "the address as --trainer.default_root_dir" if hooks("run_callbacks") else "a folder"
        raise InputError(f"--checkpoint.dirpath {best.dirpath}: checkpoints are written on this machine: give {way}")
    _prepare(best, "--checkpoint", saves, may_have_files=is_continued)
    for one in callbacks:
        if isinstance(one, Checkpoint):
            _prepare(one, "--trainer.callbacks", saves, may_have_files=True)


def _save_whole(best: ModelCheckpoint, flag: str) -> None:
    if best.save_weights_only:
        best.save_weights_only = False
        reason = "test and predict read the run's configuration from the best checkpoint"
        rank_zero_info(f"{flag}.save_weights_only true has no effect: {reason}")


def _prepare(one: Checkpoint, flag: str, saves: bool, may_have_files: bool) -> None:
    """Give checkpoints names that can be written, and make their folder."""
    if isinstance(one, ModelCheckpoint) and one.filename:
        _name_files(one, f"{flag}.filename {one.filename}")
    given = str(getattr(one, "dirpath", None) or "")
    if not saves or not given or "://" in given or getattr(rank_zero_only, "rank", 0) != 0:
        return
    folder = Path(given)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{flag}.dirpath {given} cannot be written ({error.strerror})") from error
    if not may_have_files and (found := next(folder.glob("*.ckpt"), None)):
        raise InputError(f"{flag}.dirpath {given} has {found.name} of another run: give another folder")


def _name_files(checkpoint: ModelCheckpoint, given: str) -> None:
    """Give checkpoints names without `/`: `{val/acc:.2f}` becomes `val_acc={val/acc:.2f}`."""
    pattern = checkpoint.filename or ""
    if checkpoint.auto_insert_metric_name:
        pattern = re.sub(r"\{([^:}]+)", lambda name: name[1].replace("/", "_") + "=" + name[0], pattern)
        checkpoint.filename, checkpoint.auto_insert_metric_name = pattern, False
    metrics = {name: torch.tensor(0.5) for name in re.findall(r"\{([^:}]*)", pattern)}
    metrics |= {"epoch": torch.tensor(0), "step": torch.tensor(0)}
    try:
        path = Path(checkpoint.format_checkpoint_name(metrics))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{given} is not a valid pattern, such as {{epoch}}-{{val/acc:.2f}}: {error}") from error
    if path.parent != Path(str(checkpoint.dirpath or ".")) or len(path.name) > MAX_NAME:
        raise InputError(f"{given} has a folder in it or is too long: give a file name, and folders as dirpath")
    if path.stem == "last":
        raise InputError(f"{given} is the name of the newest checkpoint: give another")
    if (top_k := checkpoint.save_top_k) not in (0, 1) and "{" not in pattern:
        raise InputError(f"{given} is the same for all checkpoints of save_top_k {top_k}: add {{epoch}} or {{step}}")


def loggers(specs: list[Any], folder: Path, purge_step: int | None) -> list[Logger]:
    """The loggers of the configuration and TensorBoard's; for the former `save_dir: .` is the run folder.

    TensorBoard discards old values from `purge_step` on: a continued run logs them again.
    """
    made: list[Logger] = []
    for spec in specs:
        arguments = {**(spec.get("init_args") or {}), **(spec.get("dict_kwargs") or {})}
        if arguments.get("save_dir") == ".":
            arguments["save_dir"] = str(folder)
        made.append(import_class(spec.class_path)(**arguments))
    if not any(isinstance(one, TensorBoardLogger) for one in made):
        names = (folder.parents[1], folder.parent.name, folder.name)
        # Last: the module's `self.logger` is the first one, that of the configuration.
        made.append(TensorBoardLogger(*names, default_hp_metric=False, purge_step=purge_step))
    return made
