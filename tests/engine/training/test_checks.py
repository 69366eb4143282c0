"""The best checkpoint is chosen by a metric that is logged, and that is of its own weights."""

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from src.engine.system.errors import InputError
from src.engine.training.checks import MonitorCheck, check_checkpoint_timing, check_clocks
from src.engine.training.finite_loss import _advice
from tests.conftest import Run, write
from tests.toy import RECIPE, ToyMLP

Train = Callable[..., Run]
STOPPING = "--trainer.callbacks+=EarlyStopping"
PLATEAU = "--lr_scheduler=ReduceLROnPlateau"


class Unvalidated(LightningModule):
    """Trains and tests, but does not validate."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ToyMLP()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, targets = batch
        return torch.nn.functional.cross_entropy(self.net(images), targets)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


MAX = "--checkpoint.mode=max"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--checkpoint.monitor=val/accc", MAX), r"^--checkpoint\.monitor val/accc: validation logs val/acc, val/f1, "),
        (
            ("--checkpoint.monitor=val/accc", MAX),
            r"val/loss, did you mean val/acc\? \(--trainer\.num_sanity_val_steps 0 ",
        ),
        (("--checkpoint.monitor=test/acc", MAX), r"^--checkpoint\.monitor test/acc: validation logs "),
        ((STOPPING, "--trainer.callbacks.monitor=val_loss"), r"^EarlyStopping: monitor val_loss: validation logs "),
        ((PLATEAU, "--lr_scheduler.monitor=val/los"), r"^ReduceLROnPlateau: monitor val/los: .* did you mean val/loss"),
    ],
)
def test_a_metric_that_validation_does_not_log_is_found_before_the_first_step(
    train: Train, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.tasks.task.Task.training_step", lambda *_: pytest.fail("it trains"))
    with pytest.raises(InputError, match=message):
        train("fit", *words)


def test_a_metric_of_training_may_be_monitored(train: Train) -> None:
    run = train("fit", "--checkpoint.monitor=train/loss", "--checkpoint.mode=min", "--max_epochs=1")
    assert (run.folder / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--checkpoint.every_n_train_steps=3",),
            r"--checkpoint\.every_n_train_steps 3 saves when --checkpoint\.monitor val/acc may not be new",
        ),
        (("--checkpoint.train_time_interval=00:01:00",), r"--checkpoint\.train_time_interval 0:01:00 saves when"),
        (
            ("--checkpoint.save_on_train_epoch_end=true", "--trainer.val_check_interval=4"),
            r"--checkpoint\.save_on_train_epoch_end true: not every epoch ends with a new ",
        ),
        (
            ("--checkpoint.monitor=train/loss", MAX, "--trainer.check_val_every_n_epoch=2"),
            r"monitor train/loss is new at the end of an epoch only: give --checkpoint\.save_on_train_epoch_end true",
        ),
        (
            ("--checkpoint.every_n_epochs=3", "--trainer.check_val_every_n_epoch=2"),
            r"every_n_epochs 3 does not fit --trainer\.check_val_every_n_epoch 2: give a multiple of 2, such as 4",
        ),
    ],
)
def test_a_checkpoint_that_would_carry_the_metric_of_other_weights_is_refused(
    parse: Callable[..., object], words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        parse("fit", *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--checkpoint.every_n_epochs=2",),
        ("--trainer.val_check_interval=4",),
        ("--trainer.val_check_interval=0.5", "--checkpoint.every_n_epochs=2"),
        ("--trainer.check_val_every_n_epoch=2",),
        ("--trainer.check_val_every_n_epoch=2", "--checkpoint.every_n_epochs=4"),
        ("--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=7"),
    ],
)
def test_the_metric_of_the_best_checkpoint_is_that_of_its_own_weights(train: Train, words: tuple[str, ...]) -> None:
    run = train("fit", *words, "--checkpoint.monitor=val/loss", "--checkpoint.mode=min", "--precision=32-true")
    path = run.folder / "checkpoints" / "best.ckpt"
    validated = train("validate", f"--ckpt_path={path}", "--precision=32-true", "--trust=tests.toy")
    best: Any = run.cli.trainer.checkpoint_callback
    scores = (run.metrics["val/loss"], best.best_model_score.item())
    assert scores == pytest.approx((validated.metrics["val/loss"],) * 2, abs=1e-6)


def test_steps_between_validations_may_be_saved_without_a_metric(train: Train) -> None:
    run = train("fit", "--checkpoint.every_n_train_steps=3", "--checkpoint.monitor=null", "--max_epochs=1")
    assert torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 9
    assert "best_epoch" not in run.metrics


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [()])
@pytest.mark.parametrize("words", [("--trainer.limit_val_batches=0",), (f"--model={__name__}.Unvalidated",)])
def test_without_validation_the_last_checkpoint_is_the_best_however_rarely_it_would_validate(
    train: Train, tmp_path: Path, words: tuple[str, ...]
) -> None:
    recipe = write(tmp_path / "own.yaml", Path(RECIPE).read_text().partition("checkpoint:")[0])
    options = ("--max_epochs=3", "--data.size=64", "--trainer.check_val_every_n_epoch=2")
    folder = train("fit", f"--config={recipe}", *words, *options).folder
    best = folder / "checkpoints" / "best.ckpt"
    assert torch.load(best, weights_only=True)["epoch"] == 2
    assert train("test", f"--run={folder}").cli.config.ckpt_path == str(best)


@pytest.mark.slow
def test_a_metric_that_only_validation_logs_needs_none_without_validation(train: Train) -> None:
    folder = train("fit", "--trainer.limit_val_batches=0", "--max_epochs=2", "--data.size=64").folder
    best = folder / "checkpoints" / "best.ckpt"
    assert torch.load(best, weights_only=True)["epoch"] == 1
    assert train("test", f"--run={folder}").cli.config.ckpt_path == str(best)


def test_several_processes_do_not_validate_by_their_clocks() -> None:
    for interval in ("00:00:15:00", timedelta(minutes=15), {"minutes": 15}):
        check_clocks(SimpleNamespace(val_check_interval=interval), 1)
        with pytest.raises(
            InputError, match=r"^--trainer\.val_check_interval .*15.*: the clocks of 2 processes differ"
        ):
            check_clocks(SimpleNamespace(val_check_interval=interval), 2)
    for number in (None, 4, 0.5):
        check_clocks(SimpleNamespace(val_check_interval=number), 2)


@pytest.mark.parametrize(
    ("automatic", "clips", "advises"), [(True, None, True), (True, 1.0, False), (False, None, False)]
)
def test_advice_after_a_nan_names_only_what_would_work(automatic: bool, clips: float | None, advises: bool) -> None:
    module = SimpleNamespace(automatic_optimization=automatic)
    advice = _advice(SimpleNamespace(optimizers=[], gradient_clip_val=clips, lightning_module=module))  # type: ignore[arg-type]
    assert ("--trainer.gradient_clip_val 1" in advice) is advises
    assert re.search("look for NaN in the data,? .*or ", advice)


@pytest.mark.parametrize("is_own", [True, False])
def test_a_metric_that_is_not_logged_is_blamed_on_who_asks_for_it(is_own: bool) -> None:
    best = ModelCheckpoint(monitor="val/none")
    trainer: Any = SimpleNamespace(callbacks=[best], callback_metrics={"val/acc": 1}, lr_scheduler_configs=[])
    owner = "--checkpoint.monitor" if is_own else "ModelCheckpoint: monitor"
    with pytest.raises(InputError, match=f"^{owner} val/none: validation logs val/acc"):
        MonitorCheck(best if is_own else ModelCheckpoint()).on_sanity_check_end(trainer, BoringModel())


def test_a_metric_of_training_is_not_said_to_be_known_after_validation() -> None:
    checkpoint = Namespace(monitor="train/loss_step", every_n_train_steps=5, train_time_interval=None)
    trainer = Namespace(check_val_every_n_epoch=1, val_check_interval=1.0)
    with pytest.raises(InputError, match="monitor train/loss_step may not be new: leave it out"):
        check_checkpoint_timing(checkpoint, trainer)
