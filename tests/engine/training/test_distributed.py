"""Several processes train what one would, count every sample once, and fall together."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import kill
import pytest

from src.engine.runs.checkpoint import read_checkpoint
from tests.conftest import Run
from tests.engine.runs.processes import DDP, left_running, metrics, only_run, run_in, spy
from tests.spies import inject_fault
from tests.toy import RECIPE

Train = Callable[..., Run]

TOY = (f"--config={RECIPE}",)


@pytest.mark.slow
def test_two_processes_train_as_one_does(train: Train, tmp_path: Path) -> None:
    # 305 images for training, 61 for validation and test: of the last batch one process has three and the other two,
    # or one and nothing.
    exact = ("--data.size=305", "--data.batch_size=20", "--precision=64-true", "--max_epochs=1")
    exact = ("--model.net=tests.toy.ToyMLP", *exact)  # no batch norm: each process has its own statistics
    one = train(*exact, *spy(tmp_path / "one.json"))
    done = run_in(tmp_path / "two", *TOY, *exact, *DDP, *spy(tmp_path / "two.json"))
    losses, others = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert len(losses) == 16
    assert others == pytest.approx(losses, rel=1e-9)
    folder = only_run(tmp_path / "two")  # one run folder for both
    assert len(list(folder.glob("events.out.tfevents*"))) == 3  # of training, test and end, by one process
    for name in ("test/loss", "test/acc", "test/f1", "val/loss", "train/loss", "train/acc"):
        assert metrics(tmp_path / "two")[name] == pytest.approx(one.metrics[name], rel=1e-6)
    assert done.stdout.count("test/acc") == 1


@pytest.mark.slow
def test_every_one_of_1001_samples_counts_once(train: Train, tmp_path: Path, toy_checkpoint: str) -> None:
    check_that_each_sample_counts_once(train, tmp_path, toy_checkpoint, "ddp")


def check_that_each_sample_counts_once(train: Train, tmp_path: Path, checkpoint: str, strategy: str) -> None:
    words = ("--data.size=5005", "--data.batch_size=1000", "--precision=32-true", f"--ckpt_path={checkpoint}")
    one = train("test", *words)
    run_in(tmp_path / "two", "test", *TOY, *words, "--devices=2", f"--strategy={strategy}")
    for name in ("test/loss", "test/acc", "test/f1"):
        assert metrics(tmp_path / "two")[name] == pytest.approx(one.metrics[name], rel=1e-6)
    table = (only_run(tmp_path / "two") / "confusion_matrix.csv").read_text()
    matrix = [line.split(",")[1:] for line in table.splitlines()[1:]]
    assert sum(int(count) for row in matrix for count in row) == 1001


def test_a_batch_that_processes_cannot_share_is_one_line(error_of: Callable[..., str]) -> None:
    said = error_of("--accelerator=cpu", *DDP, "--data.batch_size=33")
    assert re.search(r"batch_size 33 .* 2 processes .* give 32 or 34, or fewer --devices$", said)


@pytest.mark.slow
def test_where_one_process_dies_the_other_ends(tmp_path: Path) -> None:
    unlucky = inject_fault("kill", 14, tmp_path / "dead", rank=1)
    done = run_in(tmp_path / "two", "fit", *TOY, *DDP, "--max_epochs=1000", *unlucky, ok=False)
    assert (tmp_path / "dead").exists()
    assert done.returncode not in (0, None)
    assert not left_running(tmp_path)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    told = inject_fault("terminate", 14, tmp_path / "told")
    done = run_in(tmp_path / "two", "fit", *TOY, *DDP, "--max_epochs=1000", *told, ok=False)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "continue with: python -m src.train fit --ckpt_path last --run toy/version_0" in done.stderr
    last = tmp_path / "two" / "toy" / "version_0" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(str(last))["global_step"] in (15, 16)
    assert not left_running(tmp_path)


@pytest.mark.slow
def test_two_processes_retry_a_run_whose_loss_became_nan(tmp_path: Path) -> None:
    nan = inject_fault("nan", 13, tmp_path / "happened", rank=1)
    done = run_in(tmp_path / "two", "fit", *TOY, *DDP, "--max_epochs=3", "--retries=1", *nan)
    assert done.stderr.count("Retrying at half that rate from") == 1
    folder = only_run(tmp_path / "two")
    assert "lr: 0.005" in (folder / "config.resume-1.yaml").read_text()
    assert read_checkpoint(str(folder / "checkpoints" / "last.ckpt"))["global_step"] == 30
    assert not left_running(tmp_path)


@pytest.mark.slow
def test_a_signal_during_validation_stops_all_processes_after_it(tmp_path: Path) -> None:
    told = inject_fault("terminate in validation", 17, tmp_path / "told", rank=1)
    words = ("--max_epochs=1000", "--trainer.val_check_interval=7")
    done = run_in(tmp_path / "two", "fit", *TOY, *DDP, *words, *told, ok=False)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr[-3000:]
    last = tmp_path / "two" / "toy" / "version_0" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(str(last))["global_step"] == 17
    assert not left_running(tmp_path)


@pytest.mark.slow
def test_two_killed_processes_go_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TOY, *DDP, "--model.net.dropout=0.3", "--max_epochs=20", "--data.num_workers=1"]
    monkeypatch.setattr("sys.argv", ["kill.py", "--kills=1", f"--folder={tmp_path}", "--", *words])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(SystemExit) as stop:
        kill.main()
    output = capsys.readouterr().out
    assert stop.value.code == 0, output
    assert re.search(r"1 kills; [1-9]\d+ logged values compared; 0 differences", output)
