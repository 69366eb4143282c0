"""What a run writes beside its checkpoints."""

import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn

from src import ROOT
from src.engine.cli.cli import StarterCLI
from src.engine.runs import run_record
from src.engine.runs.checkpoint import read_checkpoint
from src.engine.runs.run_record import describe_environment
from src.engine.system.errors import InputError
from tests.conftest import Run, write

Parse = Callable[..., StarterCLI]


@pytest.mark.parametrize("address", ["me:secret@host/db", "me:se/secret@host/db", "host/db?user=me&password=secret"])
def test_no_password_of_a_command_is_written(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "src.tune", "--storage", f"postgresql+psycopg://{address}"])
    said = describe_environment()
    assert "secret" not in said
    assert re.search(r"me:\*{3}@host/db|user=me&password=\*{3}", said)


@pytest.mark.parametrize(("patience", "stops"), [(1, True), (3, False)])
def test_a_patience_that_is_changed_in_the_code_of_a_module_lets_a_run_train_on(patience: int, stops: bool) -> None:
    callback = EarlyStopping("val_loss", patience=patience)
    state = {"patience": 1, "stopping_reason": "patience_exhausted", "stopping_reason_message": "over"}
    trainer: Any = SimpleNamespace(should_stop=False)
    run_record._stay_stopped(trainer, callback, state)
    assert trainer.should_stop == stops


SHORT = ("--max_epochs=2", "--trainer.limit_train_batches=5", "--trainer.limit_val_batches=2")


@pytest.mark.slow
def test_metrics_are_one_flat_object_under_their_logged_names(train: Callable[..., Run]) -> None:
    run = train(*SHORT)
    metrics = run.metrics
    names = {"train/loss", "train/acc", "train/f1", "val/loss", "val/acc", "val/f1", "test/loss", "test/acc", "test/f1"}
    assert names <= metrics.keys()
    assert 0 <= metrics["test/acc"] <= 1
    assert metrics["data_source"] == "toy"
    assert 0 < metrics["train_seconds"] < metrics["total_seconds"]
    assert metrics["peak_memory_mb"] > 100
    assert all(isinstance(value, int | float | str) for value in metrics.values())
    assert metrics["test/acc"] == run.cli.trainer.callback_metrics["test/acc"].item()


@pytest.mark.slow
def test_validation_metrics_are_those_of_the_best_checkpoint_and_say_its_epoch(train: Callable[..., Run]) -> None:
    # With mode max and this rate, the loss is best, that is largest, after the first epoch.
    run = train(
        "fit", "--max_epochs=3", "--checkpoint.monitor=val/loss", "--checkpoint.mode=max", "--optimizer.lr=1e-4"
    )
    best: Any = run.cli.trainer.checkpoint_callback
    epoch = read_checkpoint(best.best_model_path)["global_step"] // 10
    assert run.metrics["best_epoch"] == epoch < 3
    assert run.metrics["val/loss"] == best.best_model_score.item()
    assert run.metrics["val/loss"] != run.cli.trainer.callback_metrics["val/loss"].item()
    rows = [line.split() for line in run.output.splitlines()]
    assert ["val/loss", f"{run.metrics['val/loss']:.4f}"] in rows
    assert ["best", "epoch", str(epoch)] in rows


@pytest.mark.slow
def test_throughput_counts_training_samples_over_training_time(train: Callable[..., Run]) -> None:
    run = train("fit", *SHORT)
    record = run.cli.record
    assert record is not None
    assert record._samples == 2 * 5 * 32  # neither validation nor the sanity check
    assert 0 < record._train_time < run.metrics["train_seconds"]
    assert run.metrics["samples_per_second"] == pytest.approx(record._samples / record._train_time)


@pytest.mark.slow
def test_a_prediction_is_recorded_too(train: Callable[..., Run]) -> None:
    path = train("fit", *SHORT).folder / "checkpoints" / "last.ckpt"
    metrics = train("predict", "--ckpt_path", str(path), "--trainer.limit_predict_batches=1").metrics
    assert metrics["data_source"] == "toy"
    assert metrics["total_seconds"] > 0


def test_what_is_not_a_number_becomes_null(tmp_path: Path) -> None:
    record = run_record.RunRecord(tmp_path, "")
    record.write(a=float("nan"), b=float("inf"), c=1.0)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"a": None, "b": None, "c": 1.0}


def test_the_environment_names_versions_commit_and_hardware(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.setattr(run_record, "ROOT", tmp_path)
    assert "git not a repository with a commit" in describe_environment()
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "first")
    assert f"git commit {git('rev-parse', 'HEAD')}, clean" in describe_environment()
    (tmp_path / "new").touch()
    text = describe_environment()
    assert f"git commit {git('rev-parse', 'HEAD')}, dirty" in text
    assert f"torch=={importlib.metadata.version('torch')}" in text
    assert "cores" in text


def test_a_run_that_uses_no_gpu_does_not_ask_for_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert "gpu none" in describe_environment()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert "gpu a card" in describe_environment()


def test_the_record_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_record.RunRecord(tmp_path, "")
    record.write(a=1.0)
    monkeypatch.setattr(Path, "replace", lambda *_: pytest.fail("stopped in the middle"))
    with pytest.raises(pytest.fail.Exception):
        record.write(a=2.0)
    monkeypatch.undo()
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"a": 1.0}


def test_the_peak_memory_is_the_runs_own_and_not_what_its_parent_had() -> None:
    source = inspect.getsource(run_record._peak_memory_mb)
    no_gpu = "SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))"  # torch itself takes seconds
    imports = (
        "import re, sys\nfrom contextlib import suppress\nfrom pathlib import Path\nfrom types import SimpleNamespace"
    )
    command = f"{imports}\ntorch = {no_gpu}\n{source}\nprint(_peak_memory_mb())"
    parent = (
        "import subprocess, sys; filled = b'1' * 2**29; del filled;"
        " print(subprocess.run([sys.executable, '-c', sys.argv[1]], capture_output=True, text=True, check=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", parent, command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) < 200


PLUGIN = ("--trainer.plugins=MixedPrecision", "--trainer.plugins.precision=bf16-mixed", "--trainer.plugins.device=cpu")


def added(name: str, *arguments: str) -> tuple[str, ...]:
    return (f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{one}" for one in arguments))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        added("Timer", "duration=00:01:00:00"),  # its default interval is an Enum
        added("ModelPruning", "pruning_fn=l1_unstructured"),  # a text or a function
        added("ModelCheckpoint", "train_time_interval=00:00:10"),
        added("LambdaCallback", "on_fit_start=src.engine.system.classes.is_class"),
        added("tests.engine.runs.toys.WithObjects", "given='1e3'", "tag=a-1e3"),
        added("tests.engine.runs.toys.WithObjects", "tag=1e3"),
        ("--trainer.max_time=00:00:10:00", "--trainer.gradient_clip_val=0.5", "--trainer.profiler=AdvancedProfiler"),
        ("--lr_scheduler=MultiStepLR", "--lr_scheduler.milestones=[1, 2]", "--checkpoint.save_top_k=2"),
        PLUGIN,
    ],
)
def test_a_run_is_repeated_by_its_configuration(words: tuple[str, ...], parse: Parse, tmp_path: Path) -> None:
    first = parse("fit", *words)
    assert first.record is not None
    again = parse("fit", "--config", write(tmp_path / "config.yaml", first.record.config))
    assert again.record is not None
    assert again.record.config == first.record.config
    kinds = [[type(one) for one in cli.trainer.callbacks] for cli in (first, again)]  # type: ignore[attr-defined]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--lr_scheduler=LambdaLR", "--lr_scheduler.lr_lambda=[src.engine.system.classes.is_class]"),
            r"^--lr_scheduler\.lr_lambda \[<function is_class at .*>\] cannot be written to config\.yaml",
        ),
    ],
)
def test_what_config_yaml_cannot_hold_is_refused_before_training(
    words: tuple[str, ...], message: str, parse: Parse, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        parse("fit", *words)
    assert not list(tmp_path.glob("logs/*/version_*"))


def test_a_new_run_with_the_settings_of_another_does_not_take_over_its_record(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed_everything: 1\n")
    record = {"samples": 30.0, "train_time": 2.0, "validated": 3, "metrics": {}}
    checkpoint = {"config": "seed_everything: 1\n", "record": record, "callbacks": {}}
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    trainer: Any = SimpleNamespace(
        state=state, callbacks=[], checkpoint_callbacks=[], ckpt_path=None, is_global_zero=False
    )
    for is_new, samples in ((True, 0.0), (False, 30.0)):
        own = run_record.RunRecord(tmp_path, "seed_everything: 1\n", is_new)
        own.on_load_checkpoint(trainer, None, {**checkpoint})  # type: ignore[arg-type]
        assert own._samples == samples
