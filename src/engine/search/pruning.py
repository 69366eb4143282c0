"""Stops bad trials of a search early."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from src.engine.training.checks import changes_accumulation


class Pruning(Callback):
    """Reports a trial's metric after each validation, and stops its run if the study's pruner decides to.

    Args:
        trial: an Optuna trial.
        metric: name of the reported metric.
    """

    def __init__(self, trial: Any, metric: str) -> None:
        self.trial = trial
        self.metric = metric
        self.pruned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self.metric not in trainer.callback_metrics:
            return
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        each, every = trainer.check_val_every_n_epoch or 1, trainer.val_check_batch
        validations = (trainer.current_epoch + 1) // each
        if every is not None and not math.isinf(every):  # else by time, or with a loader without a length
            validations = round(done / (every * each))  # so far, also in a continued run
        self.trial.report(trainer.callback_metrics[self.metric].item(), max(1, validations))
        total = trainer.estimated_stepping_batches
        # Pruning would save nothing.
        is_last = 0 < total <= trainer.global_step and not changes_accumulation(trainer)
        if not is_last and self.trial.should_prune():
            self.pruned = trainer.should_stop = True
