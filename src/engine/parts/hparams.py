"""Settings and final metrics of a run on TensorBoard's HPARAMS page."""

from typing import Any

import yaml
from lightning.pytorch import Trainer

from src.engine.system.settings import flat
from src.engine.tensorboard.writers import writers

COMPARED = ("seed_everything", "model", "data", "optimizer", "lr_scheduler")
COMPARED_OF_TRAINER = ("max_epochs", "max_steps", "precision", "gradient_clip_val", "accumulate_grad_batches")


def show_final(trainer: Trainer, config: str, metrics: dict[str, float]) -> None:
    """Write the settings of a run, from its configuration as YAML, and its final metrics."""
    from torch.utils.tensorboard.summary import hparams  # lazy import: not needed at start

    settings = hyperparameters(yaml.safe_load(config))
    for writer in writers(trainer):
        # Private (torch 2.15): logger.log_hyperparams, which calls it too, logs the metrics a second time.
        for summary in hparams(settings, metrics):  # type: ignore[no-untyped-call]
            writer._get_file_writer().add_summary(summary, trainer.global_step)


def hyperparameters(tree: dict[str, Any]) -> dict[str, bool | float | str]:
    """Settings in which runs may differ, keyed by option name."""
    compared = {key: tree.get(key) for key in COMPARED}
    compared["trainer"] = {key: tree.get("trainer", {}).get(key) for key in COMPARED_OF_TRAINER}
    given = {name: value for name, value in flat(compared).items() if value is not None}
    return {name: value if isinstance(value, bool | float | int | str) else str(value) for name, value in given.items()}
