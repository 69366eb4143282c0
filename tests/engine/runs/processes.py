"""Runs of several processes, all of them forked: see tests/forked.py."""

import json
import os
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from src import ROOT
from tests import forked
from tests.conftest import QUIET, program

DDP = ("--devices=2", "--strategy=ddp")


def run_in(folder: Path, *args: str, ok: bool = True, **env: str) -> "subprocess.CompletedProcess[str]":
    """A run of one thread a process, with its run folder and its working directory in a folder."""
    root = f"--trainer.default_root_dir={folder}"
    folder.mkdir(exist_ok=True)
    done = program(*args, *QUIET, root, cwd=folder, OMP_NUM_THREADS="1", **env)
    assert not ok or done.returncode == 0, done.stderr[-3000:]
    return done


def only_run(folder: Path) -> Path:
    """The folder of the one run that was made."""
    (run,) = folder.glob("*/version_*")
    return run


def metrics(folder: Path) -> dict[str, Any]:
    """What the one run of a folder has measured."""
    found: dict[str, Any] = json.loads((only_run(folder) / "metrics.json").read_text())
    return found


def spy(path: Path) -> tuple[str, ...]:
    """Options by which a run writes the loss of every step into a file."""
    return ("--trainer.callbacks+=tests.spies.StepLosses", f"--trainer.callbacks.path={path}")


def left_running(folder: Path, seconds: float = 20) -> list[str]:
    """The processes that still work in a folder after some time."""
    end = time.monotonic() + seconds
    while found := [path.parent.name for path in Path("/proc").glob("[0-9]*/cwd") if _leads_to(path, folder)]:
        if time.monotonic() > end:
            break
        time.sleep(0.1)
    return found


def _leads_to(link: Path, folder: Path) -> bool:
    try:
        return link.readlink().is_relative_to(folder)
    except OSError:  # it has ended, or is not ours
        return False


def start_torchrun(words: list[str], train: list[str], log: Path) -> ForkServerProcess:
    """An agent of torchrun, which starts processes of `src.train`.

    Args:
        words: options of torchrun.
        train: options of `src.train`.
        log: file for what all of them say.
    """
    command = [*words, "--no-python", sys.executable, "-m", "src.train", *train]
    agent = forked.CONTEXT.Process(target=_torchrun, args=(command, log))
    agent.start()
    return agent


def _torchrun(command: list[str], log: Path) -> None:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.environ.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    forked.install()
    subprocess_handler.Popen = subprocess.Popen  # type: ignore[misc]  # where it has been imported before
    run.main(command)
