"""The metric that selects the best checkpoint, where the configuration names none."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from src.engine.parts.monitors import MonitorChoice


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
    best = ModelCheckpoint()
    choice = MonitorChoice(best, {})
    trainer: Any = SimpleNamespace(callback_metrics={}, state=SimpleNamespace(fn="fit"), sanity_checking=False)
    module: Any = None
    choice.on_validation_start(trainer, module)
    trainer.callback_metrics = {name: torch.ones(()) for name in logged}
    choice.on_validation_end(trainer, module)
    assert best.monitor == monitor
