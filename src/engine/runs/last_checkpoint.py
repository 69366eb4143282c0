"""Saves `last.ckpt`, from which a run can continue."""

import time
import traceback
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.states import TrainerFn

from src.engine.system.interruption import Interrupted, Interruption

# Modules whose callbacks raise an error at the end of an epoch or validation if the metric they monitor is missing.
MONITORING = ("lightning.pytorch.callbacks.early_stopping", "lightning.pytorch.callbacks.model_checkpoint")


class LastCheckpoint(Checkpoint):
    """Saves after every epoch, every N steps or minutes within an epoch, and before the run stops for a signal.

    Also saves if Lightning then stops the run, because a metric that a callback monitors is missing.

    Loggers are flushed before each save, so that the curves of a continued run have no gap. With several processes, all
    stop after the same step, the one after the step in which a signal arrived, or after the validation in which it
    arrived.

    Args:
        folder: folder to save in.
        interruption: stores a received signal.
        every_n_steps: also save after this many optimizer steps; 0: never.
        every_n_minutes: also save after this many minutes; 0: never.

    Raises:
        Interrupted: a signal was received; the checkpoint is saved.
    """

    def __init__(self, folder: Path, interruption: Interruption, every_n_steps: int, every_n_minutes: float) -> None:
        self.path = folder / "last.ckpt"
        self.interruption = interruption
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._global_step = 0
        self._has_stepped = False  # in the last batch; else its gradients are still being accumulated
        self._is_due = False
        self._signum = 0
        self._metrics: dict[str, Any] = {}  # of the checkpoint from which the run continues
        self._has_ended = False  # whether that checkpoint is of the end of an epoch
        self._group: Any = None
        self._reduced = torch.tensor([0, 0])  # signal and time flag of the previous step
        self._work: Any = None  # the running all_reduce of these

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # After the checkpoint callbacks of the module: last.ckpt has their state, and the Trainer's is the first one.
        trainer.callbacks = [*(one for one in trainer.callbacks if one is not self), self]  # type: ignore[attr-defined]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interruption.install()

    on_sanity_check_start = on_test_start = on_predict_start = on_validation_start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning does not restore the loader's state if the loader was created to count a scheduler's steps.
        trainer.fit_loop._load_combined_loader_states()
        _start_next_epoch(trainer)
        if self._has_ended:
            _move_plateaus(trainer, trainer.current_epoch, self._metrics)
        self.interruption.install()
        self.interruption.waits = True
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self._global_step = trainer.global_step
        if trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")  # gloo never waits for a GPU
            # `_agree` does what this does for SIGTERM, but this waits for the GPU in every batch.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
        self._has_ended = progress.get("processed", 0) > progress.get("completed", 0)
        self._metrics = checkpoint.get("record", {}).get("metrics", {})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._work is not None:
            self._work.wait()
        self.interruption.waits = False
        if self.interruption.received:
            raise Interrupted(self.interruption.received)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.interruption.waits = False
        *_, (frame, _) = traceback.walk_tb(exception.__traceback__)
        if frame.f_globals.get("__name__") in MONITORING and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        is_time = 0 < self.every_n_minutes <= (time.monotonic() - self._saved_at) / 60
        self._signum, is_time = self._agree(trainer, self.interruption.received, is_time)
        is_step = 0 < self.every_n_steps <= trainer.global_step - self._saved_step
        self._is_due |= bool(self._signum or is_time or is_step)
        loop = trainer.fit_loop.epoch_loop
        self._has_stepped, self._global_step = trainer.global_step > self._global_step, trainer.global_step
        if not self._may_save(trainer):
            return
        # Not just before a validation or the end of an epoch: Lightning would skip these in a continued run.
        if not loop.batch_progress.is_last_batch and not loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        received = torch.tensor(self.interruption.received)  # during validation
        if trainer.world_size > 1:
            torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX, self._group)
        self._signum = self._signum or int(received)
        self._is_due |= bool(self._signum)
        if self._may_save(trainer) and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # If the run ends within an epoch, save now, so that a longer run can continue here.
        is_whole = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if is_whole or self._saved_step != trainer.global_step:
            self._save(trainer)
        if is_whole and trainer.fit_loop.restarting:
            _move_plateaus(trainer, trainer.current_epoch + 1, {**self._metrics, **trainer.callback_metrics})

    def _may_save(self, trainer: Trainer) -> bool:
        """Whether a checkpoint is due: at the end of the run, else where no gradients are being accumulated."""
        is_last = 0 < trainer.max_steps <= trainer.global_step
        is_stopped = trainer.should_stop and trainer.fit_loop._can_stop_early  # by a callback
        return is_last or is_stopped or (self._is_due and self._has_stepped)

    def _save(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            flush = getattr(getattr(logger, "experiment", None), "flush", None)
            (flush if callable(flush) else logger.save)()
        trainer.save_checkpoint(self.path, weights_only=False)  # with the optimizer
        self._saved_at, self._saved_step, self._is_due = time.monotonic(), trainer.global_step, False
        if self._signum:
            raise Interrupted(self._signum)

    def _agree(self, trainer: Trainer, signum: int, is_time: bool) -> tuple[int, bool]:
        """Signal and time flag, the maximum over all processes; with several processes, those of the previous step."""
        if trainer.world_size == 1:
            return signum, is_time
        if self._work is not None:
            self._work.wait()
        before, self._reduced = self._reduced, torch.tensor([signum, int(is_time)])
        self._work = torch.distributed.all_reduce(self._reduced, torch.distributed.ReduceOp.MAX, self._group, True)
        return int(before[0]), bool(before[1])


def _move_plateaus(trainer: Trainer, epochs: int, metrics: dict[str, Any]) -> None:
    """Move the plateau schedules at the end of an epoch in which a run continues: Lightning 2.6.6 leaves this out."""
    for one in trainer.lr_scheduler_configs if trainer.lightning_module.automatic_optimization else ():
        is_due = one.reduce_on_plateau and one.interval == "epoch" and not epochs % one.frequency
        if is_due and one.monitor in metrics:
            trainer.lightning_module.lr_scheduler_step(one.scheduler, metrics[one.monitor])


def _start_next_epoch(trainer: Trainer) -> None:
    """Continue with the next epoch if the last one was complete.

    Private (Lightning 2.6.6): with max_steps, Lightning repeats that epoch without a step and counts it twice.
    """
    loop = trainer.fit_loop
    if loop.restarted_on_epoch_end and loop._iteration_based_training():
        _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]  # the setter of the loop itself sets True
        loop.epoch_progress.increment_completed()
        loop.reset_restart_stage()
        loop.epoch_loop.reset_restart_stage()
