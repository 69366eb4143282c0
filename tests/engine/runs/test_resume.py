"""A run that goes on is the run that nothing happened to, bit by bit."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kill import differences

from src import ROOT
from src.engine.system.errors import InputError
from src.engine.system.interruption import Interrupted
from tests.conftest import Run, skip_if_deleted
from tests.spies import misfortune

Train = Callable[..., Run]

IMAGES = (
    "--model.net=CNN",
    "--model.net.width=4",
    "--model.net.hidden=16",
    "--model.net.dropout=0.3",
    "--data.source=sample",
    "--data.max_warp=1",
    "--max_epochs=3",
)
TEXT = (
    "--config=configs/text/shakespeare_gpt_fast.yaml",
    "--model.net.d_model=16",
    "--model.net.num_heads=2",
    "--model.net.num_layers=2",
    "--model.net.dropout=0.2",
    "--data.block_size=16",
    "--data.batch_size=4",
    "--trainer.val_check_interval=20",
    "--trainer.max_steps=130",
)
WORDS = (
    "--config=configs/text/language_id.yaml",
    "--model.net.d_model=8",
    "--model.net.num_heads=2",
    "--model.net.num_layers=1",
    "--data.batch_size=512",
    "--max_epochs=2",
)
EXACT = ("--precision=32-true", "--trainer.log_every_n_steps=1")


def text_of(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "text.txt").write_text("it was the best of times, it was the worst of times\n" * 150)
    return (f"--data.path={tmp_path / 'text.txt'}", f"--data.cache_dir={tmp_path}")


def stopped_at(step: int, tmp_path: Path) -> tuple[str, ...]:
    return misfortune("terminate", step, tmp_path / f"happened-{step}")


@pytest.mark.parametrize(
    ("recipe", "steps"),
    [
        pytest.param(IMAGES, (1, 40), id="images"),
        pytest.param(IMAGES, (31, 32, 63), id="images at an epoch's end"),
        pytest.param(
            (*IMAGES, "--trainer.check_val_every_n_epoch=3"), (31, 63), id="an epoch's end without validation"
        ),
        pytest.param(TEXT, (19, 20, 90), id="text, validated inside of an epoch"),
        pytest.param(WORDS, (5,), id="labelled text", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_stopped_goes_on_bit_by_bit(
    train: Train, tmp_path: Path, recipe: tuple[str, ...], steps: tuple[int, ...]
) -> None:
    words = (*recipe, *EXACT, *(text_of(tmp_path) if recipe is TEXT else ()))
    whole = train("fit", *words, sample=False)
    folder = None
    for number, step in enumerate(steps):
        goes_on = ("--run", str(folder)) if number else ("--name=stopped",)
        with pytest.raises(Interrupted):
            train("fit", *(goes_on if number else (*words, *goes_on)), *stopped_at(step, tmp_path), sample=False)
        (folder,) = (tmp_path / "logs" / "stopped").glob("version_*")
    last = train("fit", "--ckpt_path=last", "--name=stopped", sample=False)
    assert last.folder == folder
    assert differences(whole.folder, last.folder) == []


def test_other_workers_change_nothing(train: Train, tmp_path: Path) -> None:
    whole = train("fit", *IMAGES, *EXACT, "--max_epochs=2", sample=False)
    with pytest.raises(Interrupted):
        train("fit", *IMAGES, *EXACT, "--max_epochs=2", "--name=stopped", *stopped_at(40, tmp_path), sample=False)
    last = train("fit", "--ckpt_path=last", "--name=stopped", "--data.num_workers=2", sample=False)
    assert differences(whole.folder, last.folder) == []
    assert "num_workers: 2" in (last.folder / "config.resume-1.yaml").read_text()
    assert "num_workers: 0" in (last.folder / "config.yaml").read_text()


def test_a_checkpoint_of_the_best_epoch_goes_on_bit_by_bit_too(train: Train, tmp_path: Path) -> None:
    whole = train("fit", *IMAGES, *EXACT, sample=False)
    with pytest.raises(Interrupted):
        train("fit", *IMAGES, *EXACT, "--name=stopped", *stopped_at(40, tmp_path), sample=False)
    (folder,) = (tmp_path / "logs" / "stopped").glob("version_*")
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"PK lost")
    last = train("fit", "--ckpt_path=last", "--name=stopped", sample=False)
    assert any("from best.ckpt" in line for line in last.messages)
    assert differences(whole.folder, last.folder) == []


@pytest.mark.slow
def test_five_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    skip_if_deleted(IMAGES)
    words = [str(ROOT / "scripts" / "kill.py"), "--kills=5", f"--folder={tmp_path}", "--", *IMAGES, "--max_epochs=8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-5] kills; [1-9]\d+ logged values compared; 0 differences", done.stdout)


# Which run goes on


def test_last_takes_the_newest_unfinished_run_of_the_recipe(train: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no unfinished run with a checkpoint"):
        train("fit", *IMAGES, "--ckpt_path=last", sample=False)
    with pytest.raises(Interrupted):
        train("fit", *IMAGES, *stopped_at(3, tmp_path), sample=False)
    finished = train("fit", *IMAGES, "--max_epochs=1", sample=False)
    other = train("fit", *IMAGES, "--max_epochs=1", "--name=other", sample=False)
    assert (finished.folder.name, other.folder.name) == ("version_1", "version_0")
    run = train("fit", "--ckpt_path=last", sample=False)
    assert run.folder == finished.folder.with_name("version_0")
    with pytest.raises(InputError, match="no unfinished run"):
        train("fit", "--ckpt_path=last", sample=False)


def test_auto_goes_on_or_begins(train: Train, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train("fit", *IMAGES, "--ckpt_path=auto", *stopped_at(3, tmp_path), sample=False)
    again = train("fit", *IMAGES, "--max_epochs=1", "--ckpt_path=auto", sample=False)
    assert again.folder.name == "version_0"
    fresh = train("fit", *IMAGES, "--max_epochs=1", "--ckpt_path=auto", sample=False)
    assert fresh.folder.name == "version_1"


def test_a_job_that_is_started_again_finds_its_own_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.engine.runs.runs.job_name", lambda: os.environ.get("JOB", ""))
    monkeypatch.setattr("src.engine.runs.runs._restarts", lambda: int(os.environ.get("RESTARTS", "0")))
    for job, step in (("slurm 1", 3), ("torchrun 2", 4), ("", 5)):
        monkeypatch.setenv("JOB", job)
        with pytest.raises(Interrupted):
            train("fit", *IMAGES, "--ckpt_path=auto", "--name=mine", *stopped_at(step, tmp_path), sample=False)
    names = sorted(path.name for path in (tmp_path / "logs" / "mine").iterdir())
    assert names == ["version_0", "version_1"]  # the last went on with the run of torchrun, and not with SLURM's
    monkeypatch.setenv("JOB", "slurm 1")
    monkeypatch.setenv("RESTARTS", "1")
    assert train("fit", *IMAGES, "--ckpt_path=auto", "--name=mine", sample=False).folder.name == "version_0"


def test_a_run_that_was_trained_but_not_tested_is_tested(train: Train, tmp_path: Path) -> None:
    fitted = train("fit", *IMAGES, "--max_epochs=1", sample=False)
    metrics = fitted.folder / "metrics.json"
    metrics.write_text(json.dumps({}))  # as if it had died before its end
    run = train("--ckpt_path=last", sample=False)
    assert run.folder == fitted.folder
    assert "test/acc" in run.metrics
    assert run.cli.trainer.global_step == 32


def test_batches_of_another_size_wait_for_the_next_epoch(train: Train, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train("fit", *IMAGES, *stopped_at(3, tmp_path), sample=False)
    with pytest.raises(InputError, match=r"batch_size 64: the checkpoint is in the middle of an epoch .* of 128"):
        train("fit", "--ckpt_path=last", "--data.batch_size=64", sample=False)


def test_a_clock_that_was_set_back_is_noticed(train: Train, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train("fit", *IMAGES, *stopped_at(3, tmp_path), sample=False)
    (folder,) = (tmp_path / "logs" / "default").glob("version_*")
    (events,) = folder.glob("events.out.tfevents.*")
    events.rename(folder / f"events.out.tfevents.{int(time.time()) + 5000}.host.1.0")
    run = train("fit", "--ckpt_path=last", sample=False)
    assert any(
        re.search(r"The clock is (49\d\d|5000) s behind what this run has logged", line) for line in run.messages
    )


def test_a_named_folder_must_be_a_run(train: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--run \S*nowhere: no such folder"):
        train("fit", f"--run={tmp_path / 'nowhere'}", sample=False)
    with pytest.raises(InputError, match="has no checkpoint to go on from"):
        train("fit", f"--run={tmp_path}", sample=False)
