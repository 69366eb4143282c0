"""Settings and final metrics of a run on TensorBoard's HPARAMS page."""

from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

COMPARED = ("seed_everything", "model", "data", "optimizer", "lr_scheduler")
COMPARED_OF_TRAINER = ("max_epochs", "max_steps", "precision", "gradient_clip_val", "accumulate_grad_batches")


def show_final(trainer: Trainer, config: str, metrics: dict[str, float]) -> None:
    """Write the settings of a run, from its configuration as YAML, and its final metrics."""
    from torch.utils.tensorboard.summary import hparams  # lazy import: not needed at start

    settings = hyperparameters(yaml.safe_load(config))
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # Private (torch 2.15): logger.log_hyperparams, which calls it too, logs the metrics a second time.
            file = logger.experiment._get_file_writer()
            for summary in hparams(settings, metrics):  # type: ignore[no-untyped-call]
                file.add_summary(summary, trainer.global_step)


def hyperparameters(tree: dict[str, Any]) -> dict[str, bool | float | str]:
    """Settings in which runs may differ, keyed by option name."""
    flat: dict[str, bool | float | str] = {}

    def walk(node: Any, name: str) -> None:
        if isinstance(node, dict):
            if "class_path" in node:
                flat[name] = str(node["class_path"]).rpartition(".")[2]
            for key, value in (node.get("init_args", {}) if "class_path" in node else node).items():
                walk(value, f"{name}.{key}".lstrip("."))
        elif node is not None:
            flat[name] = node if isinstance(node, bool | int | float | str) else str(node)

    walk({key: tree.get(key) for key in COMPARED}, "")
    walk({key: tree.get("trainer", {}).get(key) for key in COMPARED_OF_TRAINER}, "trainer")
    return flat
