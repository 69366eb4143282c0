"""TensorBoard writers for callbacks."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger


def writers(trainer: Trainer) -> list[Any]:
    """The `SummaryWriter` of each TensorBoard logger of a run."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
