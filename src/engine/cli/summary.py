"""The summary printed at the end of a run."""

import shutil
import sys
from pathlib import Path

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from src.engine.runs.runs import relative


def print_summary(trainer: Trainer, stage: str | None, folder: Path | None, best: dict[str, float]) -> None:
    """Print the metrics of the last stage, the run folder, the best checkpoint and the TensorBoard command.

    Args:
        trainer: has run the stage.
        stage: as on the command line.
        folder: run folder, if there is one.
        best: validation metrics of the best checkpoint and its epoch, if it was trained now.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    wanted = {None: "test/", "fit": "val/", "validate": "val/"}.get(stage, "test/")
    metrics = {**{name: value.item() for name, value in trainer.callback_metrics.items()}, **best}
    for name, value in sorted(metrics.items()):
        if name.startswith(wanted):
            table.add_row(name, f"{value:.4f}")
    if folder is not None:
        table.add_row("run folder", relative(folder))
        path = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if path:
            table.add_row("best checkpoint", relative(Path(path)))
        if best:
            table.add_row("best epoch", str(best["best_epoch"]))
        tensorboard = Path(sys.executable).with_name("tensorboard")
        command = "tensorboard" if shutil.which("tensorboard") == str(tensorboard) else relative(tensorboard)
        table.add_row("see it", f"{command} --logdir {relative(folder.parents[1])}")
    # Not folded to 80 columns in a pipe or log file, so that paths can be copied.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
