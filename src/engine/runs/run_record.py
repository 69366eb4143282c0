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
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from src import ROOT
from src.engine.system.batches import batch_size
from src.engine.system.errors import InputError
from src.engine.system.metric_names import final_names

COMPARED = ("seed_everything", "model", "data", "optimizer", "lr_scheduler")
COMPARED_OF_TRAINER = ("max_epochs", "max_steps", "precision", "gradient_clip_val", "accumulate_grad_batches")
MEASURED = re.compile(".*_seconds|samples_per_second|peak_memory_mb")  # not metrics of the model


class RunRecord(Callback):
    """Writes `config.yaml` and `environment.txt` when a run starts, `metrics.json` when a stage ends.

    A run continued with other settings also gets `config.resume-1.yaml`, `config.resume-2.yaml` and so on. The
    configuration is also saved in every checkpoint.

    `metrics.json` is one flat object: final metrics by logged name, `samples_per_second` (training samples, without
    validation time), `peak_memory_mb` (GPU memory if a GPU is used, else resident memory), `data_source`, and the
    values given to `write`.

    Args:
        folder: run folder.
        config: complete configuration of the run, as YAML.
    """

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self.config = config
        self._samples = 0.0  # NaN if batches do not say their size
        self._train_time = 0.0
        self._resumed_at = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        if not (self.folder / "config.yaml").exists():
            _write(self.folder / "config.yaml", self.config)
            _write(self.folder / "environment.txt", describe_environment())
        elif trainer.state.fn == TrainerFn.FITTING and self.config not in _configurations(self.folder):
            number = len(_configurations(self.folder))
            _write(self.folder / f"config.resume-{number}.yaml", self.config)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resumed_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += batch_size(batch) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._train_time += time.perf_counter() - self._resumed_at

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resumed_at = time.perf_counter()
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write_metrics(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train_time += time.perf_counter() - self._resumed_at

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_known = self._train_time and not math.isnan(self._samples)
        rate = {"samples_per_second": self._samples / self._train_time} if is_known else {}
        self._write_metrics(trainer, **rate)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_metrics(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_metrics(trainer)

    def write(self, **values: float | str) -> dict[str, Any]:
        """Add values, such as `total_seconds`, to `metrics.json`; returns its content.

        NaN and infinity become null.
        """
        path = self.folder / "metrics.json"
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name, value in values.items():
            metrics[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        _write(path, json.dumps(metrics, indent=2) + "\n")
        return metrics

    def close(self, trainer: Trainer, **values: float | str) -> None:
        """Add the last values, and write settings and final metrics to TensorBoard's HPARAMS page."""
        metrics = self.write(**values)
        names = final_names(name for name in metrics if not MEASURED.fullmatch(name))
        final = {name: metrics[name] for name in names if isinstance(metrics[name], float)}
        if not final:
            return
        from torch.utils.tensorboard.summary import hparams  # lazy import: not needed at start

        settings = hyperparameters(yaml.safe_load(self.config))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # Private (torch 2.15): logger.log_hyperparams, which calls it too, logs the metrics a second time.
                file = logger.experiment._get_file_writer()
                for summary in hparams(settings, final):  # type: ignore[no-untyped-call]
                    file.add_summary(summary, trainer.global_step)
                logger.experiment.close()  # stops its thread: a search has many runs in one process

    def _write_metrics(self, trainer: Trainer, **more: float) -> None:
        if not trainer.is_global_zero:
            return
        values: dict[str, float | str] = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if (peak := _peak_memory_mb()) is not None:
            values["peak_memory_mb"] = peak
        data = getattr(trainer, "datamodule", None)
        values["data_source"] = getattr(data, "data_source", type(data).__name__)
        self.write(**values, **more)


def hyperparameters(tree: dict[str, Any]) -> dict[str, bool | float | str]:
    """Settings in which runs may differ, keyed by option name."""
    flat: dict[str, bool | float | str] = {}

    def walk(node: Any, name: str) -> None:
        if isinstance(node, dict):
            if "class_path" in node:
                flat[name] = str(node["class_path"]).rpartition(".")[2]
            for key, value in (node.get("init_args", {}) if "class_path" in node else node).items():
                walk(value, f"{name}.{key}".lstrip("."))
        elif node is not None:
            flat[name] = node if isinstance(node, bool | int | float | str) else str(node)

    walk({key: tree.get(key) for key in COMPARED}, "")
    walk({key: tree.get("trainer", {}).get(key) for key in COMPARED_OF_TRAINER}, "trainer")
    return flat


def _configurations(folder: Path) -> list[str]:
    """The configurations of a run, as text: the first, and those it was continued with."""
    return [path.read_text(encoding="utf-8") for path in folder.glob("config*.yaml")]


def describe_environment() -> str:
    """Python, command, git commit, hardware and all installed packages, one per line."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    capabilities = torch.backends.cpu.get_cpu_capability()
    lines = [
        f"python {platform.python_version()} on {platform.platform()}",
        f"command {' '.join(sys.orig_argv)}",
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
    try:
        # Linux initialises `ru_maxrss` with the peak of the parent process; VmHWM is that of this process.
        peak = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        peak = None
    if peak is not None:
        return int(peak[1]) / 2**10
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest / 2**20 if sys.platform == "darwin" else highest / 2**10  # bytes on macOS, else KiB


def _write(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: {path.parent} is gone, deleted or renamed during the run")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
