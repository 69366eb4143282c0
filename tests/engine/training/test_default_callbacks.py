"""Names and folders of checkpoints: whatever cannot be saved is found before training."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel

from src.engine.runs.checkpoint import read_checkpoint
from src.engine.system.errors import InputError
from src.engine.training.default_callbacks import AverageOnDevice
from src.engine.training.finite_loss import FiniteLoss
from tests.conftest import Run

Train = Callable[..., Run]
SHORT = ("--max_epochs=2", "--data.size=96")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--checkpoint.filename={epoch}-{val/acc:.2f}",), r"epoch=[01]-val_acc=\d\.\d\d\.ckpt"),
        (
            ("--checkpoint.filename={epoch:02d}-{val/loss:.1f}", "--checkpoint.save_top_k=-1"),
            r"epoch=0\d-val_loss=.*-step=\d+\.ckpt",
        ),
        (("--checkpoint.filename=x{epoch}", "--checkpoint.auto_insert_metric_name=false"), r"x[01]\.ckpt"),
        (("--checkpoint.save_top_k=2",), r"best-epoch=1-step=6\.ckpt"),
        (("--checkpoint.save_weights_only=true",), r"best\.ckpt"),
    ],
)
def test_metrics_may_be_in_the_names_of_checkpoints(train: Train, words: tuple[str, ...], expected: str) -> None:
    folder = train("fit", *SHORT, *words, "--checkpoint.monitor=val/loss", "--checkpoint.mode=min").folder
    names = {path.name for path in (folder / "checkpoints").rglob("*")} - {"last.ckpt"}
    assert re.fullmatch(expected, max(names))
    best = train("test", f"--run={folder}").cli.config.ckpt_path
    assert Path(best).name in names
    assert read_checkpoint(best)["config"]  # it is whole


@pytest.mark.slow
@pytest.mark.parametrize("callback", [False, True])
def test_the_folder_of_checkpoints_is_made(train: Train, tmp_path: Path, callback: bool) -> None:
    place = "trainer.callbacks" if callback else "checkpoint"
    words = ["--trainer.callbacks+=ModelCheckpoint"] * callback
    folder = tmp_path / "a" / "b"
    train("fit", *SHORT, *words, f"--{place}.dirpath={folder}", f"--{place}.filename={{epoch}}-{{val/acc:.2f}}")
    assert [path for path in folder.rglob("*") if "-val_acc=0." in path.name or "-val_acc=1." in path.name]
    assert all(path.is_file() for path in folder.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--checkpoint.filename=sub/{epoch}",), "filename sub/{epoch} has a folder in it"),
        (("--checkpoint.filename=../{epoch}",), "filename ../{epoch} has a folder in it"),
        ((f"--checkpoint.filename={'x' * 250}",), "is too long"),
        (("--checkpoint.filename={epoch",), "filename {epoch is not a valid pattern, such as {epoch}-{val/acc:.2f}"),
        (("--checkpoint.filename={epoch:zz}",), "is not a valid pattern"),
        (("--checkpoint.filename={val/acc:d}",), "is not a valid pattern"),
        (("--checkpoint.filename={}",), "is not a valid pattern"),
        (("--checkpoint.filename=last",), "is the name of the newest checkpoint"),
        (("--checkpoint.filename=x", "--checkpoint.save_top_k=2"), "is the same for all checkpoints of save_top_k 2"),
        (("--checkpoint.filename={val_acc}",), "filename val_acc: validation logs val/acc, val/f1, val/loss"),
        (("--checkpoint.dirpath=file/a",), "file/a cannot be written (Not a directory)"),
        (("--checkpoint.dirpath=full",), "full has best.ckpt of another run: give another folder"),
        (("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=a/b"), "callbacks.filename a/b has a"),
        (("--trainer.callbacks+=OnExceptionCheckpoint", "--trainer.callbacks.dirpath=file/a"), "file/a cannot be"),
    ],
)
def test_what_cannot_be_saved_is_found_before_training(
    train: Train, words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.tasks.task.Task.training_step", lambda *_: pytest.fail("it trains"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "best.ckpt").touch()
    with pytest.raises(InputError) as caught:
        train("fit", *SHORT, *words)
    assert message in str(caught.value)
    assert not list(tmp_path.glob("logs/*/*/checkpoints"))


@pytest.mark.slow
def test_a_run_continues_in_its_folder_of_checkpoints(train: Train, tmp_path: Path) -> None:
    words = (*SHORT[1:], f"--checkpoint.dirpath={tmp_path / 'own'}")
    first = train("fit", *words, "--max_epochs=1")
    train("fit", f"--run={first.folder}", "--max_epochs=2", *words)
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["best.ckpt"]


@pytest.mark.parametrize(("device", "expected"), [(None, "meta"), ("cpu", "cpu")])
def test_the_average_of_the_weights_is_on_their_device_or_its_own(device: str | None, expected: str) -> None:
    averaging, module = EMAWeightAveraging(decay=0.9, device=device), BoringModel()
    trainer = Trainer(logger=False, enable_checkpointing=False, callbacks=[averaging])
    averaging.setup(trainer, module, "fit")
    module.to("meta")  # as a strategy does after `setup`
    AverageOnDevice().on_fit_start(trainer, module)
    average: Any = averaging._average_model
    assert {one.device.type for one in average.parameters()} == {expected}


def test_accumulated_batches_are_checked_once_per_log_step(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    monkeypatch.setattr(FiniteLoss, "_check", lambda self, trainer: checked.append(trainer.global_step))
    words = ("--trainer.accumulate_grad_batches=2", "--trainer.log_every_n_steps=2", "--trainer.limit_val_batches=0")
    train("fit", *words, "--max_epochs=1", "--checkpoint.monitor=null")
    assert [step for step in checked if step < 5] == [2, 4]  # 5: at the end of the epoch, and for checkpoints
