"""Checks that the precision of a run is fine enough for its targets."""

from lightning.pytorch import LightningModule

from src.engine.system.errors import InputError


def check_precision(task: LightningModule, stage: str, what: str) -> None:
    """Raise InputError if the run's precision rounds the targets as it does the weights; `what` names the targets."""
    precision = task.trainer.precision
    if stage != "predict" and precision in ("bf16-true", "16-true"):
        raise InputError(f"--precision {precision} rounds the {what}: give bf16-mixed or 32-true")
