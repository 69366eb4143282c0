"""What the tests share: no network, cores divided, and the program run in this process or in its own."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from src import ROOT
from src.cli import StarterCLI

QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--accelerator=cpu")
NO_NETWORK = "http://127.0.0.1:9"  # the discard port: refused at once


def pytest_configure() -> None:
    """Divide the cores among the test processes, and keep all of them off the network."""
    threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        os.environ[name] = NO_NETWORK
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"


@dataclass
class Run:
    """A run of the program in this process."""

    cli: StarterCLI
    output: str
    messages: list[str]

    @property
    def folder(self) -> Path:
        assert self.cli.record is not None
        return self.cli.record.folder

    @property
    def metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text())
        return metrics

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        checkpoint = torch.load(self.folder / "checkpoints" / "last.ckpt", weights_only=True)
        return checkpoint["state_dict"]


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What Lightning and this project say through Lightning's logger."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    for logger in loggers:
        logger.addHandler(handler)
    yield found
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture
def train(tmp_path: Path, messages: list[str], capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run the program in this process on the sample, with runs in a folder of the test's own."""

    def run(*args: str, sample: bool = True) -> Run:
        words = [*args, *QUIET, f"--trainer.default_root_dir={tmp_path / 'logs'}"]
        if sample:
            words.append("--data.source=sample")
        del messages[:]
        cli = StarterCLI(words, time.perf_counter())
        cli.run()
        return Run(cli, capsys.readouterr().out, list(messages))

    return run


@pytest.fixture
def parse(tmp_path: Path) -> Callable[..., StarterCLI]:
    """Build everything a command line asks for, and run nothing."""

    def build(*args: str) -> StarterCLI:
        return StarterCLI([*args, *QUIET, f"--trainer.default_root_dir={tmp_path / 'logs'}"], time.perf_counter())

    return build


def program(*args: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m src.train` as a user does, in its own process."""
    command = [sys.executable, "-m", "src.train", *args]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def full_data() -> str:
    """The folder of the full data sets, where the environment names one."""
    folder = os.environ.get("FULL_DATA_DIR")
    if not folder:
        pytest.skip("FULL_DATA_DIR does not name a folder with the full MNIST")
    return folder
