"""The summary printed at the end of a run."""

import shlex
import shutil
import sys
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table

from src.engine.cli.best_checkpoint import BestCheckpoint
from src.engine.runs.runs import relative
from src.engine.system.metric_names import final_names, shown


def print_summary(trainer: Trainer, folder: Path | None, best: BestCheckpoint | None) -> None:
    """Print the metrics of the last stage, the run folder, the best checkpoint and the TensorBoard command."""
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    if best is not None and trainer.state.fn == TrainerFn.FITTING:
        metrics |= best.metrics
    epoch = None if best is None else best.metrics.get("best_epoch")
    for name in final_names(metrics.keys() - {"best_epoch"}):
        table.add_row(name, shown(metrics[name]))
    if folder is not None:
        table.add_row("run folder", relative(folder))
        path = getattr(trainer.checkpoint_callback, "best_model_path", "") if best is None else best.path
        if path:
            table.add_row("best checkpoint", relative(Path(path)))
        if epoch:
            table.add_row("best epoch", str(epoch))
        tensorboard = Path(sys.executable).with_name("tensorboard")
        command = (
            "tensorboard" if shutil.which("tensorboard") == str(tensorboard) else shlex.quote(relative(tensorboard))
        )
        table.add_row("see it", f"{command} --logdir {shlex.quote(relative(folder.parents[1]))}")
    # Not folded to 80 columns in a pipe or log file, so that paths can be copied.
    Console(width=None if sys.stdout.isatty() else 1000, markup=False).print(table)
