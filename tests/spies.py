"""Callbacks that runs of the tests name on their command lines, and what else happens to a run."""

import errno
import importlib
import json
import os
import shutil
import signal
import socket
import struct
import time
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


def misfortune(kind: str, step: int, marker: Path, rank: int = 0) -> tuple[str, ...]:
    """The options by which a `Misfortune` happens to a run."""
    return (
        "--trainer.callbacks+=tests.spies.Misfortune",
        f"--trainer.callbacks.step={step}",
        f"--trainer.callbacks.kind={kind}",
        f"--trainer.callbacks.marker={marker}",
        f"--trainer.callbacks.rank={rank}",
    )


class Payload:
    """Its pickle, once loaded, makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


class StepLosses(Callback):
    """Writes the loss of every step, the mean over all processes, at full precision.

    Args:
        path: JSON file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(trainer.strategy.reduce(outputs["loss"].detach().double(), reduce_op="mean")))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(self.losses))


def _kill_one_that_does_not_wait(waiting: connection.Connection, authkey: bytes) -> None:
    """In place of the answer to a worker that wants to hand over a tensor."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    workers = [int(pid) for pid in children if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text()]
    with socket.socket(fileno=os.dup(waiting.fileno())) as peer:
        waits, _, _ = struct.unpack("iii", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    os.kill(next(pid for pid in workers if pid != waits), signal.SIGKILL)
    with waiting:  # closed where torch's handler of SIGCHLD raises, as it is while it is being made
        time.sleep(60)


def _full_disk(folder: Path) -> None:
    """In place of what writes the last file of a sharded checkpoint."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


class Misfortune(Callback):
    """Something happens at a step, once for each marker file.

    Args:
        step: optimizer steps done before.
        kind: `kill` this process, `terminate` or `interrupt` it by a signal, `kill worker` one that loads data while
            another hands over a batch, make a weight `nan`, `fill` the disk the run writes to, `fill late` it at the
            last file of each sharded checkpoint, or `delete` the run's folder.
        marker: a file that is not there yet; it is made, and where it is there nothing happens.
        rank: the process it happens to.
    """

    def __init__(self, step: int, kind: str, marker: str, rank: int = 0) -> None:
        self.step = step
        self.kind = kind
        self.marker = Path(marker)
        self.rank = rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self.step or trainer.global_rank != self.rank or self.marker.exists():
            return
        self.marker.touch()
        if self.kind == "nan":
            with torch.no_grad():
                next(pl_module.parameters()).fill_(torch.nan)
        elif self.kind == "fill":
            with suppress(OSError), (Path(trainer.default_root_dir).parents[1] / "filler").open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        elif self.kind == "fill late":
            importlib.import_module("src.engine.runs.fsdp2").write_checksums = _full_disk  # type: ignore[attr-defined]
        elif self.kind == "delete":
            # At once: TensorBoard's thread may be writing into it.
            gone = Path(trainer.default_root_dir).with_name("gone")
            shutil.rmtree(Path(trainer.default_root_dir).rename(gone))
        elif self.kind == "kill worker":
            connection.answer_challenge = _kill_one_that_does_not_wait
        else:
            signals = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
            os.kill(os.getpid(), signals[self.kind])
