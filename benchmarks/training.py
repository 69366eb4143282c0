"""Shared by the training benchmarks: a run of src.train in a separate process."""

import contextlib
import io
import json
import logging
import multiprocessing
import os
import pty
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from src.engine.system.hardware import choose_precision


def samples_per_second(words: list[str]) -> float:
    """Samples per second in the training epoch of a run."""
    with tempfile.TemporaryDirectory() as folder:
        return float(train_quietly(words, folder)["samples_per_second"])


def train_quietly(words: list[str], folder: str) -> dict[str, Any]:
    """Run src.train in this process, with its run folder in `folder`; returns the content of `metrics.json`."""
    from src.engine.cli.cli import StarterCLI  # lazy import: reference.py does not need it

    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with terminal(), warnings.catch_warnings(action="ignore"):
        cli = StarterCLI([*words, f"--trainer.default_root_dir={folder}"], time.perf_counter())
        cli.run()
        assert cli.record is not None
        metrics: dict[str, Any] = json.loads((cli.record.folder / "metrics.json").read_text(encoding="utf-8"))
        return metrics


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Print to a pseudo-terminal, so that the progress bar is drawn as usual."""
    reader, writer = pty.openpty()

    def drain() -> None:
        with contextlib.suppress(OSError):
            while os.read(reader, 65536):
                pass

    threading.Thread(target=drain, daemon=True).start()
    with os.fdopen(writer, "w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        yield


def in_own_process(function: Callable[..., float], *args: Any) -> Callable[[], float]:
    """A function that runs in a new process each time, so that runs do not affect each other."""

    def run() -> float:
        context = multiprocessing.get_context("spawn")
        # Ctrl-C kills the child silently; this process prints the message.
        with ProcessPoolExecutor(1, context, signal.signal, (signal.SIGINT, signal.SIG_DFL)) as process:
            return process.submit(function, *args).result()

    return run


def autocast(precision: str | None = None) -> Any:
    """A precision; default: the one that a run on this CPU would choose."""
    precision = precision or choose_precision("cpu")[0]
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
