"""Chooses the metric that selects the best checkpoint, where the configuration names none."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from src.engine.runs.checkpoint import best_states
from src.engine.system.errors import InputError
from src.engine.system.metric_names import final_names
from src.engine.training.checks import DEFAULT_MONITOR, FOLLOWED, validates
from src.engine.training.early_stopping import follow, followers


class MonitorChoice(Callback):
    """Selects the best checkpoint by `val/loss`, else by `val_loss`, else by the only loss that validation logs.

    Without one, the last checkpoint is the best. Prints what it chose, if checkpoints are saved. An EarlyStopping with
    the monitor `checkpoint.monitor` uses the same metric, or that of the module's own ModelCheckpoint.

    Args:
        best: the callback that saves the best checkpoint.
        checkpoint: the one from which the run continues, or empty; the metric it had chosen is tried first.
    """

    def __init__(self, best: ModelCheckpoint, checkpoint: dict[str, Any]) -> None:
        states = best_states(checkpoint)
        monitor = states[0].get("monitor") if states else DEFAULT_MONITOR
        self.best = best
        best.monitor = monitor if isinstance(monitor, str) else None
        self._stoppers: list[EarlyStopping] = []
        self._before: dict[str, Any] = {}
        self._is_settled = False
        self._saves = True  # whether checkpoints are saved

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        everyone: Any = trainer.callbacks  # type: ignore[attr-defined]
        others = [one for one in everyone if isinstance(one, ModelCheckpoint)]
        self._saves = bool(others)
        if others and self.best not in others:  # the module or the configuration has its own
            self._is_settled, self.best = True, others[0]
        self._stoppers += followers(everyone)
        follow(self._stoppers, self.best.monitor or FOLLOWED, self.best.mode)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_settled and not validates(trainer):
            self._settle(None, "there is no validation")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_settled or trainer.state.fn != "fit":
            return
        logged = [name for name, one in trainer.callback_metrics.items() if self._before.get(name) is not one]
        losses = final_names(name for name in logged if "loss" in name.lower())
        usual = [name for name in (DEFAULT_MONITOR, "val_loss") if name in losses]
        monitor = next(iter(usual or (losses if len(losses) == 1 else ())), None)
        reason = f"validation logs {f'{len(losses)} losses' if losses else 'no loss'}"
        if monitor is None and any(one.strict for one in self._stoppers) and (others := final_names(logged)):
            way = losses[0] if losses else f"{others[0]} and --checkpoint.mode max or min"
            raise InputError(f"EarlyStopping has no metric, as {reason}: give --checkpoint.monitor {way}")
        if trainer.sanity_checking:  # not every module logs in it
            self.best.monitor = monitor
            follow(self._stoppers, monitor or FOLLOWED, self.best.mode)
        else:
            self._settle(monitor, reason)

    def _settle(self, monitor: str | None, reason: str) -> None:
        self._is_settled = True
        self.best.monitor = monitor
        follow(self._stoppers, monitor or DEFAULT_MONITOR, self.best.mode)
        if self._saves and monitor is None:
            rank_zero_info(f"The best checkpoint is the last one, as {reason}: give --checkpoint.monitor for another")
        elif self._saves and monitor != DEFAULT_MONITOR:
            which = f"the {'lowest' if self.best.mode == 'min' else 'highest'} {monitor}"
            rank_zero_info(f"The best checkpoint has {which}, as validation does not log {DEFAULT_MONITOR}")
