"""A run that continues with the words of its first start has each callback once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Run

Train = Callable[..., Run]


STOPPING = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss")


def kinds(run: Run) -> list[str]:
    return sorted(type(one).__name__ for one in run.cli.trainer.callbacks)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize(
    "added",
    [
        ("--config=configs/callbacks/weight_averaging.yaml",),
        ("--config=configs/callbacks/early_stopping.yaml",),
        ("--config=configs/callbacks/pictures.yaml",),
        ("--config=configs/callbacks/early_stopping.yaml", "--config=configs/callbacks/early_stopping.yaml"),
        STOPPING,
        ("--trainer.logger+=CSVLogger", "--trainer.logger.save_dir=."),
        ("--trainer.plugins+=lightning.pytorch.plugins.TorchCheckpointIO",),
    ],
)
def test_the_same_command_is_the_same_run_whatever_it_adds(train: Train, added: tuple[str, ...]) -> None:
    words = ("fit", *added, "--ckpt_path=auto", "--max_epochs=1")
    first = train(*words)
    (first.folder / "metrics.json").unlink()  # as if it had been killed
    second = train(*words)
    assert second.folder == first.folder
    assert kinds(second) == sorted([*kinds(first), "OptimizerOverrides"])
    assert len(second.cli.trainer.loggers) == len(first.cli.trainer.loggers)
    assert not list(first.folder.glob("config.resume-*"))


@pytest.mark.slow
def test_a_changed_early_stopping_replaces_that_of_the_run(train: Train) -> None:
    first = train("fit", "--config=configs/callbacks/early_stopping.yaml", "--max_epochs=1")
    changed = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.patience=7")
    second = train("fit", f"--run={first.folder}", *changed, "--max_epochs=2")
    assert kinds(second) == sorted([*kinds(first), "OptimizerOverrides"])
    (callback,) = second.cli.trainer.early_stopping_callbacks
    assert callback.patience == 7


@pytest.mark.slow
def test_the_test_after_training_scores_what_the_checkpoint_holds(train: Train) -> None:
    words = ("--config=configs/callbacks/weight_averaging.yaml", "--max_epochs=1", "--data.size=96")
    trained = train(*words, "--checkpoint.monitor=null")
    again = train("test", f"--run={trained.folder}", "--ckpt_path=best", "--data.size=96")
    assert trained.metrics["test/loss"] == pytest.approx(again.metrics["test/loss"], abs=1e-6)


@pytest.mark.slow
def test_a_second_checkpoint_callback_does_not_decide_what_is_tested(train: Train, tmp_path: Path) -> None:
    words = ("--trainer.callbacks+=ModelCheckpoint", f"--trainer.callbacks.dirpath={tmp_path / 'other'}")
    run = train(*words, "--max_epochs=2")
    best = run.cli.trainer.checkpoint_callback
    assert best.best_model_path == str(run.folder / "checkpoints" / "best.ckpt")  # type: ignore[union-attr]
    assert str(tmp_path / "other") not in run.output


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", bytes(10_000)])
def test_a_last_checkpoint_of_zeros_is_passed_over_for_the_best(train: Train, content: bytes) -> None:
    run = train("fit", "--max_epochs=2")
    (run.folder / "metrics.json").unlink()
    (run.folder / "checkpoints" / "last.ckpt").write_bytes(content)
    again = train("fit", "--ckpt_path=last", "--max_epochs=3")
    assert again.folder == run.folder
    assert any("last.ckpt is not a checkpoint: not used" in line for line in again.messages)


def test_a_checkpoint_has_the_permissions_that_the_umask_leaves(train: Train) -> None:
    run = train("fit", "--max_epochs=1")
    (run.folder / "plain").touch()
    modes = {(run.folder / name).stat().st_mode & 0o777 for name in ("plain", "checkpoints/best.ckpt")}
    assert len(modes) == 1
