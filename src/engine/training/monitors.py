"""Checks, before the first step, which metrics are monitored and when."""

import re
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from src.engine.system.classes import nearest
from src.engine.system.errors import InputError

# A metric with another name may be logged in training.
OF_EVALUATION = re.compile("(val|valid|validation|test)[/_]")


class MonitorCheck(Callback):
    """Checks after the sanity check that validation logs every monitored metric that is named like one of its own.

    Raises:
        InputError: a checkpoint, a callback or the schedule monitors a metric that validation does not log.
    """

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own, logged = trainer.checkpoint_callback, sorted(trainer.callback_metrics)
        plateaus: Any = [one for one in trainer.lr_scheduler_configs if one.reduce_on_plateau]
        for one in [*trainer.callbacks, *plateaus]:  # type: ignore[attr-defined]
            monitor = getattr(one, "monitor", None)
            if not isinstance(monitor, str) or monitor in logged or not OF_EVALUATION.match(monitor):
                continue
            what = "--checkpoint.monitor" if one is own else f"{type(getattr(one, 'scheduler', one)).__name__}: monitor"
            raise InputError(
                f"{what} {monitor}: validation logs {', '.join(logged) or 'nothing'}{nearest(monitor, logged)}"
                " (--trainer.num_sanity_val_steps 0 skips this check)"
            )


def check_rhythm(checkpoint: Any, trainer: Any) -> None:
    """Check that the best checkpoint is chosen when its metric is new.

    Args:
        checkpoint: settings of the ModelCheckpoint.
        trainer: settings of the Trainer.

    Raises:
        InputError: it would be saved with the metric of other weights.
    """
    monitor, every = checkpoint.monitor, trainer.check_val_every_n_epoch
    if not monitor:
        return
    for name in ("every_n_train_steps", "train_time_interval"):
        if checkpoint[name]:
            raise InputError(
                f"--checkpoint.{name} {checkpoint[name]} saves between validations, when --checkpoint.monitor {monitor}"
                " is that of other weights: leave it out and validate more often with --trainer.val_check_interval, or"
                " give --checkpoint.monitor null"
            )
    at_epoch_end = trainer.val_check_interval in (None, 1.0) and every == 1
    if monitor.startswith("val") and checkpoint.save_on_train_epoch_end and not at_epoch_end:
        raise InputError(
            f"--checkpoint.save_on_train_epoch_end true: --checkpoint.monitor {monitor} is not new at the end of every"
            " epoch, as validation runs at other times: leave it out"
        )
    if monitor.startswith("train") and not checkpoint.save_on_train_epoch_end and not at_epoch_end:
        raise InputError(
            f"--checkpoint.monitor {monitor} is new at the end of an epoch, but it is read after validation: give"
            " --checkpoint.save_on_train_epoch_end true"
        )
    if (n := checkpoint.every_n_epochs) and every and n % every and not at_epoch_end:
        raise InputError(
            f"--checkpoint.every_n_epochs {n} does not fit --trainer.check_val_every_n_epoch {every}: give a multiple"
            f" of {every}, such as {every * -(-n // every)}"
        )
