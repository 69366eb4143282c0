"""The precision of a run, where targets need a finer one."""

from lightning.pytorch import LightningModule

from src.engine.system.errors import InputError


def check_precision(task: LightningModule, stage: str, what: str) -> None:
    """Raise InputError if the precision of the run rounds the targets, called `what`, as it does the weights."""
    precision = task.trainer.precision
    if stage != "predict" and precision in ("bf16-true", "16-true"):
        raise InputError(f"--precision {precision} rounds the {what}: give bf16-mixed or 32-true")
