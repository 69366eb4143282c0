"""Lightning's progress bar, at a pace for people."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

UPDATES_PER_SECOND = 4


class PacedProgressBar(RichProgressBar):
    """Moves a few times a second, where RichProgressBar reads every metric from the device after every batch.

    It shows what was last logged of a training step, although that is not marked for it.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=UPDATES_PER_SECOND)
        self._moved = 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        if self._is_due(args, self.total_train_batches):
            super().on_train_batch_end(*args)

    def on_validation_batch_end(self, *args: Any) -> None:
        if self._is_due(args, self.total_val_batches_current_dataloader):
            super().on_validation_batch_end(*args)

    def on_test_batch_end(self, *args: Any) -> None:
        if self._is_due(args, self.total_test_batches_current_dataloader):
            super().on_test_batch_end(*args)

    def on_predict_batch_end(self, *args: Any) -> None:
        if self._is_due(args, self.total_predict_batches_current_dataloader):
            super().on_predict_batch_end(*args)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The numbers beside the bar."""
        logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("train/loss")}
        return {name: float(value) for name, value in logged.items()} | super().get_metrics(trainer, pl_module)

    def _is_due(self, args: tuple[Any, ...], total: float) -> bool:
        batch_idx, now = args[4], time.perf_counter()
        if batch_idx + 1 < total and now - self._moved < 1 / UPDATES_PER_SECOND:
            return False
        self._moved = now
        return True
