"""Shows the size of the network, and progress: a bar on a terminal, plain lines in a file or pipe."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar, RichProgressBar
from lightning.pytorch.utilities.model_summary import get_human_readable_count
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.parameter import is_lazy

from src.engine.system.metric_names import shown
from src.engine.system.quiet import drop_output
from src.engine.training.checks import changes_accumulation

UPDATES_PER_SECOND = 4
SECONDS_BETWEEN_LINES = 30


def adjust_trainer(options: dict[str, Any]) -> None:
    """Add the callbacks to the arguments of the Trainer, each unless the configuration has its own or none."""
    callbacks: list[Callback] = options["callbacks"]
    if options["enable_progress_bar"] is not False and not any(isinstance(one, ProgressBar) for one in callbacks):
        callbacks.append(PacedProgressBar() if sys.stdout.isatty() else ProgressLines())
    if options["enable_model_summary"] is not False and not any(isinstance(one, ModelSummary) for one in callbacks):
        callbacks.append(NetworkSummary())
        options["enable_model_summary"] = False  # instead of Lightning's


class PacedProgressBar(RichProgressBar):
    """Reads metrics a few times per second; RichProgressBar reads them from the device after each training batch.

    The bar of each epoch stays on screen, with loss, metric and rate.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=UPDATES_PER_SECOND, leave=True)
        self._updated_at = 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        batch_idx, now = args[4], time.perf_counter()
        if batch_idx + 1 >= self.total_train_batches or now - self._updated_at >= 1 / UPDATES_PER_SECOND:
            self._updated_at = now
            super().on_train_batch_end(*args)

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning counts from 0, and shows a run without a number of epochs as "Epoch 0/-2".
        epochs = self.trainer.max_epochs or -1
        description = f"Epoch {current_epoch + 1}" + (f"/{epochs}" if epochs > 0 else "")
        return description.ljust(len(self.validation_description))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The numbers next to the bar."""
        return shown_metrics(trainer)


def shown_metrics(trainer: Trainer) -> dict[str, Any]:
    """The loss of the last log step, and the metric that selects the best checkpoint, else `val/acc` or `val/loss`.

    Without `train/loss`, what the module logs for the progress bar.
    """
    logged = trainer.callback_metrics
    loss = logged.get("train/loss_step", logged.get("train/loss"))
    shown = dict(trainer.progress_bar_metrics) if loss is None else {"loss": float(loss)}
    monitor = getattr(trainer.checkpoint_callback, "monitor", None)
    metric = next((name for name in (monitor, "val/acc", "val/loss") if name in logged), None)
    return shown if metric is None else {**shown, str(metric): float(logged[metric])}


class ProgressLines(ProgressBar):
    """Prints a line after each validation, and otherwise about every 30 seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._printed_at = time.monotonic()

    def enable(self) -> None:
        self._is_enabled = True

    def disable(self) -> None:
        self._is_enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._printed_at = time.monotonic()
        # Start time and step; validation time is added to the start.
        self._rate_from = (self._printed_at, trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if time.monotonic() - self._printed_at > SECONDS_BETWEEN_LINES:
            self._print_training(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_start = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            since, step = self._rate_from
            self._rate_from = (since + time.monotonic() - self._validation_start, step)
            self._print_training(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.enable_validation:
            self._print_training(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._print_batch("validation", trainer.num_val_batches, *args[2:])

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._print_batch("test", trainer.num_test_batches, *args[2:])

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._print_batch("prediction", trainer.num_predict_batches, *args[2:])

    def _print_training(self, trainer: Trainer) -> None:
        now, step, total = time.monotonic(), trainer.global_step, trainer.estimated_stepping_batches
        # With manual optimization a batch may have several steps. A loader may have no length.
        is_known = trainer.lightning_module.automatic_optimization and 0 < total < float("inf")
        is_known = is_known and not changes_accumulation(trainer)
        of_total = f" of {total:,}" if is_known else ""
        since, first = self._rate_from
        rate = (step - first) / max(now - since, 1e-6)
        metrics = [f"{name} {shown(value)}" for name, value in shown_metrics(trainer).items()]
        self._rate_from = (now, step)
        place = f"epoch {trainer.current_epoch + 1}, step {step:,}{of_total}"
        self._print(", ".join([place, *metrics, f"{rate:.1f} steps/s"]))

    def _print_batch(self, what: str, totals: list[int | float], batch_idx: int, dataloader_idx: int = 0) -> None:
        if time.monotonic() - self._printed_at > SECONDS_BETWEEN_LINES:
            total = totals[dataloader_idx]
            of_total = f" of {total:,}" if total < float("inf") else ""
            self._print(f"{what}: batch {batch_idx + 1:,}{of_total}")

    def _print(self, line: str) -> None:
        self._printed_at = time.monotonic()
        if self._is_enabled:
            try:
                print(line, flush=True)
            except BrokenPipeError:  # the run goes on, and saves
                drop_output()


class NetworkSummary(Callback):
    """Prints the parts of the network and their parameter counts when training begins.

    Lightning's ModelSummary also lists metrics, and cannot estimate the size in mixed precision.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        net: Any = getattr(pl_module, "net", pl_module)
        table = Table("part", "type", "parameters", title=type(net).__name__, title_justify="left", title_style="bold")
        table.columns[2].justify = "right"
        for name, part in net.named_children():
            if count := _count(part.parameters()):
                table.add_row(name, type(part).__name__, count)
        table.add_section()
        frozen = _count(one for one in net.parameters() if not one.requires_grad)
        table.add_row("all", f"{frozen} frozen" if frozen else "", _count(net.parameters()))
        Console().print(table)


def _count(parameters: Iterable[nn.Parameter]) -> str:
    count = sum(one.numel() for one in parameters if not is_lazy(one))
    return get_human_readable_count(count).strip() if count else ""
