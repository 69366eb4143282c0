"""Ctrl-C and SIGTERM, in the process of a run and in those that it starts."""

import os
import signal
from pathlib import Path

import pytest
import torch

from src.engine.runs.checkpoint import write_checkpoint
from src.engine.system.interruption import Interrupted, Interruption


def test_a_second_ctrl_c_stops_at_once() -> None:
    interruption = Interruption()
    interruption.waits = True
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        interruption.install()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # SLURM and torchrun send it twice; the run still saves
        assert interruption.received == signal.SIGTERM
        interruption.received = 0
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.received == signal.SIGINT
        with pytest.raises(Interrupted, match="Ctrl-C"):
            os.kill(os.getpid(), signal.SIGINT)
        assert not interruption.waits
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_ctrl_c_in_a_process_that_the_run_has_forked_is_left_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    interruption = Interruption()
    interruption._process = -1  # not this one
    interruption._receive(signal.SIGINT, None)
    assert not interruption.received
    interruption._receive(signal.SIGTERM, None)
    assert ended == [143]


def test_a_second_ctrl_c_while_a_checkpoint_is_written_is_no_error_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: object) -> None:
        try:
            raise Interrupted(signal.SIGINT)
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(Interrupted):
        write_checkpoint({}, tmp_path / "last.ckpt")
    assert not any(tmp_path.iterdir())
