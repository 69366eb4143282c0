"""Stops bad trials of a search early."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


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
        validations = max(1, round(done / (trainer.val_check_batch or done)))  # so far, also in a continued run
        self.trial.report(trainer.callback_metrics[self.metric].item(), validations)
        is_last = trainer.global_step >= trainer.estimated_stepping_batches  # pruning would save nothing
        if not is_last and self.trial.should_prune():
            self.pruned = trainer.should_stop = True
