"""TensorBoard writers for callbacks."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger


def writers(trainer: Trainer) -> list[Any]:
    """The `SummaryWriter` of each TensorBoard logger of a run."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def logged_step(trainer: Trainer, module: Any, step: int) -> int:
    """The step at which to log: `step`; with manual optimization the batch, as Lightning logs then."""
    if getattr(module, "automatic_optimization", True):
        return step
    return trainer.fit_loop.epoch_loop._batches_that_stepped
