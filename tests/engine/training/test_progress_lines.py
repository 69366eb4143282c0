import re
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback
from src.callbacks import progress_lines

from src.engine.cli.cli import StarterCLI
from tests.conftest import program, skip_if_deleted

SMALL = ("--model.net=MLP", "--accelerator=cpu", "--data.source=sample", "--trainer.limit_train_batches=8")


def run(tmp_path: Any, *words: str) -> None:
    skip_if_deleted(SMALL)
    StarterCLI([*words, *SMALL, f"--trainer.default_root_dir={tmp_path}"], 0.0).run()


def test_where_nobody_watches_each_validation_is_a_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "--max_epochs=2", "--trainer.log_every_n_steps=4")
    said = re.findall(
        r"^epoch (\d), step (\d+) of 16, loss [\d.]+, val/acc [\d.]+, [\d.]+ steps a second$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    assert said == [("1", "8"), ("2", "16")]


def test_long_epochs_and_long_tests_are_heard_of_twice_a_minute(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 10**6, 16))
    monkeypatch.setattr(progress_lines, "time", SimpleNamespace(monotonic=lambda: next(now)))
    run(tmp_path, "--max_epochs=1", "--trainer.log_every_n_steps=1", "--data.batch_size=100")
    said = capsys.readouterr().out
    assert re.search(r"^epoch 1, step [1-7] of 8, loss", said, re.MULTILINE)
    assert re.search(r"^test: batch \d of 5$", said, re.MULTILINE)


def test_the_rate_is_that_of_training_alone(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_lines, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Clock(Callback):
        """A step takes half a second, a batch of validation forty."""

        def on_train_batch_start(self, *args: Any) -> None:
            now[0] += 0.5

        def on_validation_batch_start(self, *args: Any) -> None:
            now[0] += 40

    skip_if_deleted(SMALL)
    words = [*SMALL, "--max_epochs=2", f"--trainer.default_root_dir={tmp_path}"]
    cli = StarterCLI(["fit", *words, "--trainer.limit_val_batches=3"], 0.0)
    cli.trainer.callbacks.insert(0, Clock())  # type: ignore[attr-defined]
    cli.run()
    said = capsys.readouterr().out
    assert "validation: batch" in said
    assert re.findall(r"([\d.]+) steps a second", said) == ["2.0", "2.0"]


def test_without_validation_each_epoch_is_a_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "fit", "--max_epochs=2", "--trainer.limit_val_batches=0", "--checkpoint.monitor=null")
    assert len(re.findall("^epoch", capsys.readouterr().out, re.MULTILINE)) == 2


@pytest.mark.parametrize("words", [("--trainer.enable_progress_bar=false",), ("--quiet",)])
def test_it_says_nothing_where_that_is_wanted(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    run(tmp_path, "fit", "--max_epochs=1", *words)
    assert "epoch 1" not in capsys.readouterr().out


def test_quiet_leaves_warnings_and_what_came_out(tmp_path: Any) -> None:
    done = program("--quiet", *SMALL, "--max_epochs=1", f"--trainer.default_root_dir={tmp_path}")
    assert done.returncode == 0
    said = [line for line in done.stdout.splitlines() if line.strip()]
    assert [line.split()[0] for line in said] == ["test/acc", "test/f1", "test/loss", "run", "best", "see"]
    # Lightning's hint on a machine with SLURM is a warning; so is that these are no official digits.
    heard = [line for line in done.stderr.splitlines() if "srun" not in line]
    assert len(heard) == 2 - ("smaller than the logging" not in done.stderr), done.stderr
    assert "SAMPLE DATA, NOT MNIST" in done.stderr
