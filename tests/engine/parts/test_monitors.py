"""The metric that selects the best checkpoint, where the configuration names none."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from src.engine.parts.monitors import MonitorChoice
from src.engine.system.errors import InputError
from src.engine.training.early_stopping import EarlyStopping


def chosen(logged: list[str], *callbacks: Callback) -> ModelCheckpoint:
    """The best checkpoint, after a validation that logs metrics of some names."""
    best = ModelCheckpoint()
    choice = MonitorChoice(best, {})
    trainer: Any = SimpleNamespace(
        callback_metrics={}, callbacks=[best, *callbacks], state=SimpleNamespace(fn="fit"), sanity_checking=False
    )
    module: Any = None
    choice.setup(trainer, module, "fit")
    choice.on_validation_start(trainer, module)
    trainer.callback_metrics = {name: torch.ones(()) for name in logged}
    choice.on_validation_end(trainer, module)
    return best


@pytest.mark.parametrize(
    ("logged", "monitor"),
    [
        (["val/loss", "other_loss"], "val/loss"),
        (["train_loss", "acc"], "train_loss"),  # a step that training and validation share
        (["a_loss", "b_loss"], None),
        (["acc"], None),
    ],
)
def test_the_only_loss_that_validation_logs_selects_whatever_its_name(logged: list[str], monitor: str | None) -> None:
    assert chosen(logged).monitor == monitor


@pytest.mark.parametrize(
    ("logged", "message"),
    [
        (
            ["valid_acc", "lr-Adam"],
            "logs no loss: give --checkpoint.monitor valid_acc and --checkpoint.mode max or min",
        ),
        (["acc", "a_loss", "b_loss"], "validation logs 2 losses: give --checkpoint.monitor a_loss"),
    ],
)
def test_early_stopping_without_a_metric_names_one(logged: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"^EarlyStopping has no metric, as .*{message}$"):
        chosen(logged, EarlyStopping())
    chosen(logged, EarlyStopping(strict=False))
    chosen([*logged, "val/loss"], EarlyStopping())
