"""Runs that are stopped and go on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from kill import differences
from lightning.pytorch import Callback, Trainer

from src.engine.system.interruption import Interrupted
from tests.conftest import Run
from tests.spies import inject_fault

ENDS = f"--trainer.callbacks+={__name__}.EndsAt"
EXACT = ("--precision=32-true", "--trainer.log_every_n_steps=1")


def stopped_at(step: int, tmp_path: Path) -> tuple[str, ...]:
    """Options by which a run is told to stop when it has done some steps; it does one more."""
    return inject_fault("terminate", step, tmp_path / f"happened-{step}")


class EndsAt(Callback):
    """Ends a run after some steps, as the callback of max_time does."""

    def __init__(self, step: int = 0, batch: int = 0) -> None:
        self.step = step
        self.batch = batch

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        is_first = trainer.current_epoch == 0 and self.batch == batch_idx + 1
        if is_first or (self.step and trainer.global_step == self.step):
            trainer.should_stop = True


def differences_after_stops(
    train: Callable[..., Run], tmp_path: Path, words: Sequence[str], steps: Sequence[int], goes_on: Sequence[str] = ()
) -> list[str]:
    """What differs, bit by bit, between a run that nothing happens to and one that is stopped and goes on.

    Args:
        train: runs the program.
        tmp_path: folder of the test.
        words: options of both.
        steps: when it is stopped.
        goes_on: options with which it goes on for the last time.
    """
    whole = train("fit", *words, *EXACT)
    folder = None
    for step in steps:
        run = ("--run", str(folder)) if folder else (*words, *EXACT, "--name=stopped")
        with pytest.raises(Interrupted):
            train("fit", *run, *stopped_at(step, tmp_path))
        (folder,) = (tmp_path / "logs" / "stopped").glob("version_*")
    last = train("fit", "--ckpt_path=last", "--name=stopped", *goes_on)
    assert last.folder == folder
    return differences(whole.folder, last.folder)
