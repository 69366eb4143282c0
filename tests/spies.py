"""Callbacks that tests add to runs: recorded losses and injected faults."""

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


def inject_fault(kind: str, step: int, marker: Path, rank: int = 0) -> tuple[str, ...]:
    """The options that add a `FaultInjector` to a run."""
    return (
        "--trainer.callbacks+=tests.spies.FaultInjector",
        f"--trainer.callbacks.step={step}",
        f"--trainer.callbacks.kind={kind}",
        f"--trainer.callbacks.marker={marker}",
        f"--trainer.callbacks.rank={rank}",
    )


class Payload:
    """Creates a folder when its pickle is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


class StepLosses(Callback):
    """Writes the loss of every step, averaged over all processes, at full precision.

    Args:
        path: JSON file to write.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.world_size > 1:  # Lightning's own check for SIGTERM, which waits for the GPU in every batch, is off
            loop = trainer.fit_loop.epoch_loop
            assert "_broadcast_sigterm_tensor" in vars(loop).keys() & vars(type(loop)).keys()
        self.losses.append(float(trainer.strategy.reduce(outputs["loss"].detach().double(), reduce_op="mean")))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(self.losses))


def _kill_another_worker(waiting: connection.Connection, authkey: bytes) -> None:
    """Replaces the answer to a worker that sends a tensor: kills one of the other workers."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    workers = [int(pid) for pid in children if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text()]
    with socket.socket(fileno=os.dup(waiting.fileno())) as peer:
        sender, _, _ = struct.unpack("iii", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    os.kill(next(pid for pid in workers if pid != sender), signal.SIGKILL)
    with waiting:  # closes the connection when torch's SIGCHLD handler raises
        time.sleep(60)


class FaultInjector(Callback):
    """Causes a fault at a step, once per marker file.

    Args:
        step: optimizer steps before the fault.
        kind: `kill`, `terminate` or `interrupt` this process with SIGKILL, SIGTERM or SIGINT; `terminate in validation`
            when a validation begins; `kill worker`: kill a loader process while another sends a batch; `nan`:
            set weights to NaN; `fill`: fill the disk of the run; `delete`: delete the run folder.
        marker: file created by the fault; nothing happens if it exists.
        rank: process in which the fault happens.
    """

    def __init__(self, step: int, kind: str, marker: str, rank: int = 0) -> None:
        self.step = step
        self.kind = kind
        self.marker = Path(marker)
        self.rank = rank

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.global_step != self.step or trainer.global_rank != self.rank or self.marker.exists():
            return False
        self.marker.touch()
        return True

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.kind == "terminate in validation" and self._is_due(trainer):
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.kind == "terminate in validation" or not self._is_due(trainer):
            return
        if self.kind == "nan":
            with torch.no_grad():
                next(pl_module.parameters()).fill_(torch.nan)
        elif self.kind == "fill":
            with suppress(OSError), (Path(trainer.default_root_dir).parents[1] / "filler").open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        elif self.kind == "delete":
            # Renamed first, because TensorBoard's thread may be writing into it.
            gone = Path(trainer.default_root_dir).with_name("gone")
            shutil.rmtree(Path(trainer.default_root_dir).rename(gone))
        elif self.kind == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        elif self.kind == "kill worker":
            connection.answer_challenge = _kill_another_worker
        else:
            signals = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
            os.kill(os.getpid(), signals[self.kind])
