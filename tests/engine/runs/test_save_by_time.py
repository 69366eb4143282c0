"""A run is saved every few minutes, also within an epoch."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer

from src.engine.runs import last_checkpoint
from tests.conftest import Run

STEPS = 10  # of an epoch
SECONDS = 25  # that pass between two looks at the clock, of which each step has one


@pytest.mark.parametrize(("minutes", "expected"), [("1", [3, 6, 9, STEPS]), ("0", [STEPS])])
def test_a_checkpoint_is_saved_in_an_epoch_when_its_time_has_come(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, minutes: str, expected: list[int]
) -> None:
    saved = []
    save = Trainer.save_checkpoint

    def noted(self: Trainer, path: Any, *args: Any, **options: Any) -> None:
        save(self, path, *args, **options)
        if Path(path).name == "last.ckpt":
            saved.append(self.global_step)

    clock = count(step=SECONDS)
    monkeypatch.setattr(last_checkpoint, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(Trainer, "save_checkpoint", noted)
    train("fit", "--max_epochs=1", "--trainer.limit_val_batches=0", f"--save_every_n_minutes={minutes}")
    assert saved == expected
