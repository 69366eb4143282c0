import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from src.callbacks import progress_bar
from src.engine.training.progress_lines import ProgressLines

from src import ROOT
from src.engine.cli.cli import StarterCLI
from src.engine.training.progress_bar import PacedProgressBar
from tests.conftest import skip_if_deleted

COLOUR = re.compile(r"\x1b\[[0-9;]*[349][0-7]")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def test_every_run_has_one_unless_it_brings_another_or_none(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--data.source=sample", "--model.net=MLP", "--accelerator=cpu", f"--trainer.default_root_dir={tmp_path}")
    skip_if_deleted(words)
    for is_terminal, more, expected in (
        (True, (), PacedProgressBar),
        (False, (), ProgressLines),
        (True, ("--trainer.callbacks+=TQDMProgressBar",), TQDMProgressBar),
        (False, ("--trainer.callbacks+=TQDMProgressBar",), TQDMProgressBar),
        (True, ("--trainer.enable_progress_bar=false",), type(None)),
    ):
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda is_terminal=is_terminal: is_terminal))
        cli = StarterCLI([*words, *more], 0.0)
        assert type(cli.trainer.progress_bar_callback) is expected


@pytest.mark.parametrize("stage", ["train", "validation", "test", "predict"])
def test_it_moves_a_few_times_a_second_and_at_the_last_batch(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    now, moved = [100.0], []
    monkeypatch.setattr(progress_bar, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    name = f"on_{stage}_batch_end"
    monkeypatch.setattr(RichProgressBar, name, lambda self, *args: moved.append(args[4]))
    short = {"validation": "val"}.get(stage, stage)
    total = f"total_{short}_batches" if stage == "train" else f"total_{short}_batches_current_dataloader"
    monkeypatch.setattr(RichProgressBar, total, 100)
    bar = PacedProgressBar()
    for batch_idx in range(100):
        getattr(bar, name)(None, None, None, None, batch_idx)
        now[0] += 0.01
    assert moved == [0, 25, 50, 75, 99]


def on_a_terminal(*words: str, **env: str) -> str:
    """What a run shows on a terminal of 100 columns."""
    skip_if_deleted(["--data.source=sample"])
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    command = [sys.executable, "-m", "src.train", "--accelerator=cpu", "--data.source=sample", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **env}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the other side is closed
            while part := os.read(ours, 65536):
                shown += part
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    return shown.decode()


def test_on_a_terminal_each_epoch_keeps_a_full_bar_with_loss_metric_and_rate(tmp_path: Any) -> None:
    root = f"--trainer.default_root_dir={tmp_path}"
    shown = on_a_terminal("--model.net=MLP", "--max_epochs=2", root)
    assert COLOUR.search(shown)
    plain = CONTROL.sub("", shown)
    for epoch in (0, 1):
        assert re.search(rf"Epoch {epoch}/1\s.*32/32 .*it/s loss: [\d.]+\s+val/acc: [\d.]+", plain), plain
    # The first bar is let go, and so stays, before there is a second: rich then shows the cursor again.
    assert re.search(r"Epoch 0/1.*\x1b\[\?25h.*Epoch 1/1", shown, re.DOTALL)
    assert "test/acc" in plain
    assert "Tip:" not in plain
    assert "weights_only" not in plain
    warned = [line for line in plain.splitlines() if "site-packages" in line and "srun" not in line]
    assert not warned


@pytest.mark.slow
def test_without_colour_where_nobody_wants_any(tmp_path: Any) -> None:
    root = f"--trainer.default_root_dir={tmp_path}"
    shown = on_a_terminal("fit", "--model.net=MLP", "--max_epochs=1", root, NO_COLOR="1")
    assert "Epoch 0/0" in shown
    assert not COLOUR.search(shown)
