"""Writes configuration, environment and metrics of a run to its folder."""

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from src import ROOT
from src.engine.runs.checkpoint import check_names, configurations, names_of, read_checkpoint
from src.engine.system.batches import batch_size
from src.engine.system.errors import InputError
from src.engine.system.hooks import hooks
from src.engine.system.metric_names import final_names, stage_of

MEASURED = re.compile(".*_seconds|samples_per_second|peak_memory_mb")  # not metrics of the model


class RunRecord(Callback):
    """Writes `config.yaml` and `environment.txt` when a run starts, `metrics.json` when a stage ends.

    A run continued with other settings also gets `config.resume-1.yaml`, `config.resume-2.yaml` and so on. The
    configuration is also saved in every checkpoint.

    `metrics.json` is one flat object: final metrics by logged name, `samples_per_second` (training samples, without
    validation time), `stopped_early` with epoch and reason, `peak_memory_mb` (GPU memory if a GPU is used, else
    resident memory), `data_source`, and the values given to `write`.

    A run that EarlyStopping has stopped trains on only if the patience is changed or EarlyStopping removed.

    Args:
        folder: run folder.
        config: complete configuration of the run, as YAML.
        is_new: whether this is a new run, even if it starts from a checkpoint of another run.
    """

    def __init__(self, folder: Path, config: str, is_new: bool = False) -> None:
        self.folder = folder
        self.config = config
        self.is_new = is_new
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # else an earlier run in this process would count
            torch.cuda.reset_peak_memory_stats()
        self._samples = 0.0  # NaN if batches do not say their size
        self._train_time = 0.0
        self._resumed_at = 0.0
        self._validated = -1  # step of the last validation

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = trainer.strategy.broadcast(self.folder)
        if not trainer.is_global_zero:
            return
        if not (self.folder / "config.yaml").exists():
            _write(self.folder / "config.yaml", self.config)
            _write(self.folder / "environment.txt", describe_environment())
        elif trainer.state.fn == TrainerFn.FITTING and self.config != (known := configurations(self.folder))[-1]:
            _write(self.folder / f"config.resume-{len(known)}.yaml", self.config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config
        checkpoint["record"] = {
            "samples": self._samples,
            "train_time": self._train_time,
            "validated": self._validated,
            "metrics": _logged(trainer),
            "names": names_of(getattr(trainer, "datamodule", None)),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING or not self.is_new:
            check_names(checkpoint, getattr(trainer, "datamodule", None))
        if trainer.state.fn != TrainerFn.FITTING:
            return
        is_own = not self.is_new and checkpoint.get("config") in configurations(self.folder)
        if is_own and (record := checkpoint.get("record")):
            self._samples, self._train_time = record["samples"], record["train_time"]
            self._validated = record["validated"]
            self._write_metrics(trainer, **record["metrics"])
        folders = {str(getattr(one, "dirpath", self.folder / "checkpoints")) for one in trainer.checkpoint_callbacks}
        is_here = str(Path(str(trainer.ckpt_path)).absolute().parent) in folders
        states = checkpoint.get("callbacks") or {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            is_best, key = isinstance(callback, ModelCheckpoint), callback.state_key
            if not is_best and not isinstance(callback, EarlyStopping):
                continue
            if not is_own or (is_best and not is_here):
                # Its best value is of other data or settings; Lightning would load and delete its checkpoints.
                states.pop(key, None)
            elif is_best:
                _follow_best(callback, states.get(key))
            elif state := states.get(key):
                _stay_stopped(trainer, callback, state)
        if not is_own:
            checkpoint.pop("record", None)
            for state in checkpoint.get("lr_schedulers") or ():
                if "mode_worse" in state:  # of ReduceLROnPlateau
                    state |= {"best": state["mode_worse"], "num_bad_epochs": 0}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resumed_at = time.perf_counter()
        if trainer.is_global_zero and is_finished(self.folder):  # it trains on, so its final values no longer hold
            gone = ("total_seconds", "stopped_early", "best_epoch")
            metrics = read_metrics(self.folder).items()
            kept = {name: value for name, value in metrics if name not in gone and stage_of(name) != "test"}
            _write(self.folder / "metrics.json", json.dumps(kept, indent=2) + "\n")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resumed_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += batch_size(batch) * trainer.world_size
        now = time.perf_counter()
        self._train_time += now - self._resumed_at
        self._resumed_at = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resumed_at = time.perf_counter()
        if not trainer.sanity_checking:
            self._validated = trainer.global_step
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write_metrics(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_metrics(trainer)
        if trainer.is_global_zero and (reason := _stop_reason(trainer)):
            rank_zero_info(f"Stopped early at {reason}")
            self.write(stopped_early=reason)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_metrics(trainer)

    on_predict_end = on_test_end

    def write(self, **values: float | str) -> dict[str, Any]:
        """Add values, such as `total_seconds`, to `metrics.json`; returns its content.

        NaN and infinity become null.
        """
        metrics = read_metrics(self.folder)
        for name, value in values.items():
            metrics[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        _write(self.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        return metrics

    def close(self, trainer: Trainer, **values: float | str) -> None:
        """Add the last values, and let parts of the engine show the final metrics."""
        metrics = self.write(**values)
        names = final_names(name for name in metrics if not MEASURED.fullmatch(name))
        final = {name: metrics[name] for name in names if isinstance(metrics[name], float)}
        for show_final in hooks("show_final") if final else ():
            show_final(trainer, self.config, final)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.close()  # stops its thread: a search has many runs in one process

    def _write_metrics(self, trainer: Trainer, **more: float) -> None:
        if not trainer.is_global_zero:
            return
        values: dict[str, float | str] = {**_logged(trainer), **more}
        if self._train_time and not math.isnan(self._samples):
            values["samples_per_second"] = self._samples / self._train_time
        if (peak := _peak_memory_mb()) is not None:
            values["peak_memory_mb"] = peak
        data = getattr(trainer, "datamodule", None)
        values["data_source"] = getattr(data, "data_source", type(data).__name__)
        self.write(**values)


def read_metrics(folder: Path) -> dict[str, Any]:
    """The content of `metrics.json`; empty if the file is missing or not a JSON object."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def is_finished(folder: Path) -> bool:
    """Whether a run has completed."""
    return "total_seconds" in read_metrics(folder)


def best_metrics(checkpoint: dict[str, Any], monitor: str | None) -> dict[str, float]:
    """Validation metrics of a run's best checkpoint, also `monitor`, which has selected it, and its epoch, from 1.

    Empty if it was saved without validation.
    """
    record = checkpoint.get("record") or {}
    if record.get("validated") != checkpoint["global_step"]:
        return {}
    metrics = {name: value for name, value in record["metrics"].items() if name == monitor or stage_of(name) == "val"}
    return {**metrics, "best_epoch": checkpoint["epoch"] + 1}


def _stay_stopped(trainer: Trainer, callback: EarlyStopping, state: dict[str, Any]) -> None:
    """Train nothing after EarlyStopping has stopped this run, unless its patience was changed since."""
    is_changed = state.get("patience") != callback.patience
    state["patience"] = callback.patience  # that of the configuration, not of the checkpoint
    if not state.get("stopping_reason"):
        return
    if is_changed:
        state |= {"stopping_reason": EarlyStoppingReason.NOT_STOPPED.value, "stopping_reason_message": None}
        return
    trainer.should_stop = True
    reason = _without_hint(state["stopping_reason_message"])
    advice = f"change the patience of {type(callback).__name__}, or remove it, to continue"
    rank_zero_info(f"This run has stopped early ({reason}), so nothing is left to train: {advice}")


def _follow_best(callback: ModelCheckpoint, state: dict[str, Any] | None) -> None:
    """Keep the best checkpoint of a run that was moved, or goes on with another `monitor` or `save_top_k`."""
    if not state:
        _keep_best(callback)
        return
    old, new = str(state.get("dirpath")), str(callback.dirpath)
    scores = state.get("best_k_models") or {}
    if old != new and Path(state["best_model_path"].replace(old, new)).exists():
        state |= {name: value.replace(old, new) for name, value in state.items() if isinstance(value, str)}
        scores = state["best_k_models"] = {path.replace(old, new): score for path, score in scores.items()}
    if 0 < callback.save_top_k <= len(scores):
        kept = sorted(scores, key=lambda path: float(scores[path]), reverse=callback.mode == "max")
        state["best_k_models"] = {path: scores[path] for path in kept[: callback.save_top_k]}
        state["kth_best_model_path"] = kept[callback.save_top_k - 1]
        state["kth_value"] = scores[state["kth_best_model_path"]]


def _keep_best(callback: ModelCheckpoint) -> None:
    """Let the best checkpoint of a run count for another metric, if its validation has logged it."""
    path = Path(str(callback.dirpath), f"{callback.filename}{callback.FILE_EXTENSION}")
    if not callback.monitor or not path.exists():
        return
    with suppress(InputError):  # it may be damaged
        score = best_metrics(read_checkpoint(str(path)), callback.monitor).get(callback.monitor, math.nan)
        if not math.isnan(score):
            callback.best_model_path = callback.kth_best_model_path = str(path)
            callback.best_model_score = callback.kth_value = torch.tensor(score)
            callback.best_k_models = {str(path): callback.kth_value}


def _logged(trainer: Trainer) -> dict[str, float]:
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def _stop_reason(trainer: Trainer) -> str:
    """Epoch and reason if a callback has stopped the run before its limits; else empty."""
    steps, epochs = trainer.max_steps, trainer.max_epochs
    ends_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    is_last = epochs is not None and 0 <= epochs <= trainer.current_epoch
    is_whole = 0 <= steps <= trainer.global_step or (is_last and ends_epoch)
    if is_whole or not trainer.should_stop:
        return ""
    stoppers: Any = [one for one in trainer.callbacks if isinstance(one, EarlyStopping)]  # type: ignore[attr-defined]
    reasons = [_without_hint(one.stopping_reason_message) for one in stoppers if one.stopping_reason_message]
    return f"epoch {trainer.current_epoch}: {reasons[0] if reasons else 'a callback or --trainer.max_time ended it'}"


def _without_hint(text: str) -> str:
    return text.removesuffix(" Signaling Trainer to stop.").removesuffix(".")


def without_password(text: str) -> str:
    """A text whose addresses have *** in place of passwords."""
    text = re.sub(r"(://[^/\s:@]*:)[^\s@]+@", r"\1***@", text)
    return re.sub(r"([?&]\w*password=)[^&\s'\"]+", r"\1***", text)


def describe_environment() -> str:
    """Python, command, git commit, hardware and all installed packages, one per line."""
    # A run on the CPU does not start CUDA: it takes memory, and fails with an old driver.
    count = torch.cuda.device_count() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
    gpus = [torch.cuda.get_device_name(i) for i in range(count)]
    capabilities = torch.backends.cpu.get_cpu_capability()
    lines = [
        f"python {platform.python_version()} on {platform.platform()}",
        f"command {without_password(' '.join(sys.orig_argv))}",
        f"git {_git_state()}",
        f"cpu {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {capabilities}",
        f"gpu {', '.join(gpus) or 'none'}",
        "",
        *_packages(),
    ]
    return "\n".join(lines) + "\n"


@cache
def _packages() -> list[str]:
    """Installed packages with versions; cached, since reading them takes more than 0.1 s."""
    found = [one.metadata for one in importlib.metadata.distributions()]
    return sorted({f"{one['Name']}=={one['Version']}" for one in found}, key=str.lower)


def _git_state() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return f"commit {git('rev-parse', 'HEAD')}, {'dirty' if git('status', '--porcelain') else 'clean'}"
    except (OSError, subprocess.CalledProcessError):
        return "not a repository with a commit"


def _peak_memory_mb() -> float | None:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    with suppress(OSError):
        # Linux initialises `ru_maxrss` with the peak of the parent process; VmHWM is that of this process.
        if peak := re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(peak[1]) / 2**10
    with suppress(ImportError):  # not on Windows
        import resource

        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return highest / 2**20 if sys.platform == "darwin" else highest / 2**10  # bytes on macOS, else KiB
    return None


def _write(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
