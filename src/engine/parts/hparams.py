"""Settings and final metrics of a run on TensorBoard's HPARAMS page."""

from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from src.engine.system.classes import flat

COMPARED = ("seed_everything", "model", "data", "optimizer", "lr_scheduler")
COMPARED_OF_TRAINER = ("max_epochs", "max_steps", "precision", "gradient_clip_val", "accumulate_grad_batches")


def show_final(trainer: Trainer, config: str, metrics: dict[str, float]) -> None:
    """Write the settings of a run, from its configuration as YAML, and its final metrics."""
    # Names of their own: the page shows the last value of a curve, and the best checkpoint may be an earlier one.
    final = {f"final/{name}": value for name, value in metrics.items()}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(hyperparameters(yaml.safe_load(config)), final, trainer.global_step)


def hyperparameters(tree: dict[str, Any]) -> dict[str, bool | float | str]:
    """Settings in which runs may differ, keyed by option name."""
    compared = {key: tree.get(key) for key in COMPARED}
    compared["trainer"] = {key: tree.get("trainer", {}).get(key) for key in COMPARED_OF_TRAINER}
    given = {name: value for name, value in flat(compared).items() if value is not None}
    return {name: value if isinstance(value, bool | float | int | str) else str(value) for name, value in given.items()}
