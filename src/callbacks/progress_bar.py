"""Lightning's progress bar, at a pace for people."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

UPDATES_PER_SECOND = 4


class PacedProgressBar(RichProgressBar):
    """Moves a few times a second, where RichProgressBar reads every metric from the device after every batch.

    Each epoch keeps its bar, with loss, metric and rate.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=UPDATES_PER_SECOND, leave=True)
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
        return shown_metrics(trainer)

    def _is_due(self, args: tuple[Any, ...], total: float) -> bool:
        batch_idx, now = args[4], time.perf_counter()
        if batch_idx + 1 < total and now - self._moved < 1 / UPDATES_PER_SECOND:
            return False
        self._moved = now
        return True


def shown_metrics(trainer: Trainer) -> dict[str, Any]:
    """The loss of the last log step, and the metric by which the best checkpoint is chosen, else accuracy or loss."""
    logged = trainer.callback_metrics
    loss = logged.get("train/loss_step", logged.get("train/loss"))
    shown = {} if loss is None else {"loss": float(loss)}
    monitor = getattr(trainer.checkpoint_callback, "monitor", None)
    metric = next((name for name in (monitor, "val/acc", "val/loss") if name in logged), None)
    return shown if metric is None else {**shown, str(metric): float(logged[metric])}
