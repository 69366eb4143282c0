"""Progress as lines, for a file or a pipe."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from src.callbacks.progress_bar import shown_metrics

SECONDS = 30  # between lines where nothing else is to be said


class ProgressLines(ProgressBar):
    """Prints a line after each validation, and at least twice a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._said_at = time.monotonic()
        self._rate_from = (0.0, 0)  # time and step; validation moves the time
        self._validates_since = 0.0

    def enable(self) -> None:
        self._is_enabled = True

    def disable(self) -> None:
        self._is_enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._said_at = time.monotonic()
        self._rate_from = (self._said_at, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._said_at > SECONDS:
            self._say_training(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validates_since = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        since, step = self._rate_from
        self._rate_from = (since + time.monotonic() - self._validates_since, step)
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._say_training(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.enable_validation:
            self._say_training(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._say_batch("validation", args[2], trainer.num_val_batches)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._say_batch("test", args[2], trainer.num_test_batches)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._say_batch("prediction", args[2], trainer.num_predict_batches)

    def _say_training(self, trainer: Trainer) -> None:
        now, step, total = time.monotonic(), trainer.global_step, trainer.estimated_stepping_batches
        of = f" of {total:,}" if isinstance(total, int) or total < float("inf") else ""
        since, first = self._rate_from
        rate = (step - first) / max(now - since, 1e-6)
        metrics = [f"{name} {value:.4f}" for name, value in shown_metrics(trainer).items()]
        line = ", ".join(
            [f"epoch {trainer.current_epoch + 1}, step {step:,}{of}", *metrics, f"{rate:.1f} steps a second"]
        )
        self._rate_from = (now, step)
        self._print(line)

    def _say_batch(self, what: str, batch_idx: int, totals: list[int | float]) -> None:
        if time.monotonic() - self._said_at > SECONDS:
            self._print(f"{what}: batch {batch_idx + 1:,} of {sum(totals):,}")

    def _print(self, line: str) -> None:
        self._said_at = time.monotonic()
        if self._is_enabled:
            print(line, flush=True)
