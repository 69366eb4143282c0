import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from src import ROOT
from src.engine.cli.cli import StarterCLI
from src.engine.parts import progress
from src.engine.parts.progress import PacedProgressBar, ProgressLines
from tests.conftest import program

COLOUR = re.compile(r"\x1b\[[0-9;]*[349][0-7]")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
Build = Callable[..., StarterCLI]


@pytest.fixture
def build(tmp_path: Path, recipe: tuple[str, ...]) -> Build:
    """Build a run with a progress bar, without starting it."""
    root = f"--trainer.default_root_dir={tmp_path / 'logs'}"
    return lambda *words: StarterCLI([*words, *recipe, "--accelerator=cpu", root], 0.0)


@pytest.mark.slow
def test_every_run_has_a_progress_bar_unless_it_names_another_or_none(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_terminal, words, expected in (
        (True, (), PacedProgressBar),
        (False, (), ProgressLines),
        (True, ("--trainer.callbacks+=TQDMProgressBar",), TQDMProgressBar),
        (False, ("--trainer.callbacks+=TQDMProgressBar",), TQDMProgressBar),
        (True, ("--trainer.enable_progress_bar=false",), type(None)),
    ):
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda is_terminal=is_terminal: is_terminal))
        assert type(build(*words).trainer.progress_bar_callback) is expected


def test_a_bar_of_training_moves_a_few_times_a_second_and_at_the_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    now, moved = [100.0], []
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(RichProgressBar, "on_train_batch_end", lambda self, *args: moved.append(args[4]))
    monkeypatch.setattr(RichProgressBar, "total_train_batches", 100)
    bar = PacedProgressBar()
    for batch_idx in range(100):
        bar.on_train_batch_end(None, None, None, None, batch_idx)
        now[0] += 0.01
    assert moved == [0, 25, 50, 75, 99]


@pytest.fixture
def on_a_terminal(tmp_path: Path, recipe: tuple[str, ...]) -> Callable[..., str]:
    """The output of a run on a terminal of 100 columns."""

    def run(*words: str, **env: str) -> str:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        root = f"--trainer.default_root_dir={tmp_path}"
        command = [sys.executable, "-m", "src.train", *words, *recipe, "--accelerator=cpu", root]
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

    return run


@pytest.mark.slow
def test_on_a_terminal_each_epoch_keeps_a_full_bar_with_loss_metric_and_rate(on_a_terminal: Callable[..., str]) -> None:
    shown = on_a_terminal("--max_epochs=2")
    assert COLOUR.search(shown)
    plain = CONTROL.sub("", shown)
    for epoch in (1, 2):
        assert re.search(rf"Epoch {epoch}/2\s.*10/10 .*it/s loss: [\d.]+\s+val/acc: [\d.]+", plain), plain
    # The first bar ends, and so stays, before the second begins: rich shows the cursor again in between.
    assert re.search(r"Epoch 1/2.*\x1b\[\?25h.*Epoch 2/2", shown, re.DOTALL)
    assert "test/acc" in plain
    assert "Tip:" not in plain
    assert "weights_only" not in plain
    warned = [line for line in plain.splitlines() if "site-packages" in line and "srun" not in line]
    assert not warned


@pytest.mark.slow
def test_a_bar_of_a_run_of_steps_names_the_epoch_only(on_a_terminal: Callable[..., str]) -> None:
    shown = CONTROL.sub("", on_a_terminal("--trainer.max_epochs=-1", "--trainer.max_steps=15"))
    assert re.findall(r"Epoch \S+", shown)[-1] == "Epoch 2"
    assert "/-" not in shown


@pytest.mark.slow
def test_no_color_turns_colours_off(on_a_terminal: Callable[..., str]) -> None:
    shown = on_a_terminal("fit", "--max_epochs=1", NO_COLOR="1")
    assert "Epoch 1/1" in shown
    assert not COLOUR.search(shown)


@pytest.mark.slow
def test_without_a_terminal_each_validation_prints_a_line(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    build("--max_epochs=2", "--trainer.limit_train_batches=8", "--trainer.log_every_n_steps=4").run()
    said = re.findall(
        r"^epoch (\d), step (\d+) of 16, loss [\d.]+, val/acc [\d.]+, [\d.]+ steps/s$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    assert said == [("1", "8"), ("2", "16")]


@pytest.mark.slow
def test_long_epochs_and_long_tests_print_a_line_twice_a_minute(
    build: Build, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 10**6, 16))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
    words = ("--trainer.limit_train_batches=8", "--trainer.log_every_n_steps=1", "--data.batch_size=12")
    build("--max_epochs=1", *words).run()
    said = capsys.readouterr().out
    assert re.search(r"^epoch 1, step [1-7] of 8, loss", said, re.MULTILINE)
    assert re.search(r"^test: batch \d of 5$", said, re.MULTILINE)


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_its_lines_any_more() -> None:
    code = """
import sys
from src.engine.parts.progress import ProgressLines
for _ in range(3):
    ProgressLines()._print("a line")
print("trained", file=sys.stderr)
"""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "trained")


def test_a_batch_is_counted_in_its_own_loader(capsys: pytest.CaptureFixture[str]) -> None:
    lines = progress.ProgressLines()
    lines._printed_at -= 100
    trainer: Any = SimpleNamespace(num_val_batches=[5, 7])
    lines.on_validation_batch_end(trainer, None, {}, None, 1, 1)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "validation: batch 2 of 7\n"


@pytest.mark.slow
def test_the_printed_rate_leaves_validation_out(
    build: Build, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Clock(Callback):
        """A training step takes half a second, a validation batch 40 seconds."""

        def on_train_batch_start(self, *args: Any) -> None:
            now[0] += 0.5

        def on_validation_batch_start(self, *args: Any) -> None:
            now[0] += 40

    cli = build("fit", "--max_epochs=2", "--trainer.limit_train_batches=8")
    cli.trainer.callbacks.insert(0, Clock())
    cli.run()
    said = capsys.readouterr().out
    assert "validation: batch" in said
    assert re.findall(r"([\d.]+) steps/s", said) == ["2.0", "2.0"]


def test_without_validation_each_epoch_prints_a_line(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    build("fit", "--max_epochs=2", "--trainer.limit_val_batches=0", "--checkpoint.monitor=null").run()
    assert len(re.findall("^epoch", capsys.readouterr().out, re.MULTILINE)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--trainer.enable_progress_bar=false",), ("--quiet",)])
def test_no_lines_are_printed_without_a_progress_bar_or_under_quiet(
    build: Build, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    build("fit", "--max_epochs=1", *words).run()
    assert "epoch 1" not in capsys.readouterr().out


@pytest.mark.slow
def test_quiet_prints_only_warnings_and_results(tmp_path: Path, recipe: tuple[str, ...]) -> None:
    short = ("--max_epochs=1", "--trainer.limit_train_batches=2", "--accelerator=cpu")
    done = program("--quiet", *recipe, *short, f"--trainer.default_root_dir={tmp_path}")
    assert done.returncode == 0
    said = [line for line in done.stdout.splitlines() if line.strip()]
    assert [line.split()[0] for line in said] == ["test/acc", "test/f1", "test/loss", "run", "best", "best", "see"]
    # Lightning's hint on a machine with SLURM is a warning too.
    (warned,) = [line for line in done.stderr.splitlines() if "srun" not in line]
    assert "smaller than the logging interval" in warned
