"""The summary printed at the end of a run."""

import shutil
import sys
from pathlib import Path

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from src.engine.runs.runs import relative
from src.engine.system.metric_names import final_names


def print_summary(trainer: Trainer, folder: Path | None, best: str) -> None:
    """Print the metrics of the last stage, the run folder, the best checkpoint and the TensorBoard command."""
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    metrics = trainer.callback_metrics
    for name in final_names(metrics):
        table.add_row(name, f"{metrics[name].item():.4f}")
    if folder is not None:
        table.add_row("run folder", relative(folder))
        if best:
            table.add_row("best checkpoint", relative(Path(best)))
        tensorboard = Path(sys.executable).with_name("tensorboard")
        command = "tensorboard" if shutil.which("tensorboard") == str(tensorboard) else relative(tensorboard)
        table.add_row("see it", f"{command} --logdir {relative(folder.parents[1])}")
    # Not folded to 80 columns in a pipe or log file, so that paths can be copied.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
