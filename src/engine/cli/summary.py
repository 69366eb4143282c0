"""The result of a run: its best checkpoint, which is tested, and the summary printed at the end."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from rich.console import Console
from rich.table import Column, Table

from src.engine.runs.checkpoint import read_checkpoint, shards_of
from src.engine.runs.run_record import best_metrics
from src.engine.runs.runs import relative
from src.engine.system.errors import raised_by_lightning
from src.engine.system.metric_names import final_names, shown


class _Again(LambdaCallback):
    """A type of its own: Lightning would replace a LambdaCallback by one of the module."""


class BestCheckpoint:
    """The checkpoint that `--checkpoint` has chosen in the run of a Trainer, read from its file.

    `metrics` are its validation metrics and its epoch; empty if there is no such checkpoint.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.path = getattr(trainer.checkpoint_callback, "best_model_path", "")
        self.content: dict[str, Any] = read_checkpoint(self.path) if self.path and Path(self.path).exists() else {}
        monitor = getattr(trainer.checkpoint_callback, "monitor", None)
        self.metrics = best_metrics(self.content, monitor) if self.content else {}

    def test(self, model: LightningModule, datamodule: LightningDataModule | None) -> None:
        """Test it as `src.train test` does, or the last weights if there is no such checkpoint.

        Lightning would let callbacks that have trained, such as WeightAveraging, put other weights in their place.
        Without a test step or test data, it only says so.
        """
        for name, instance in (("test_step", model), ("test_dataloader", datamodule or model)):
            if not is_overridden(name, instance):
                rank_zero_info(f"Not tested: {type(instance).__name__} has no method {name}")
                return
        path, callbacks = None, self.trainer.callbacks  # type: ignore[attr-defined]
        before = list(callbacks)
        no_file = "the last weights: no best checkpoint was saved"
        rank_zero_info(f"Testing {relative(Path(self.path)) if self.content else no_file}")
        if self.content and shards_of(Path(self.path)):
            path = self.path
        elif self.content:
            content = {name: value for name, value in self.content.items() if name != "half_epoch"}
            model.on_load_checkpoint(content)
            weights = content["state_dict"]
            model.load_state_dict(weights, strict=model.strict_loading)
            # Again when the test starts, for layers that a module builds anew in `setup`.
            again = _Again(on_test_start=lambda _, module: module.load_state_dict(weights, strict=False))
            callbacks.insert(0, again)
        try:
            self.trainer.test(model, datamodule=datamodule, ckpt_path=path, weights_only=True, verbose=False)
        except TypeError as error:  # test_dataloader returns None
            if not raised_by_lightning(error) or "dataloader" not in str(error):
                raise
            rank_zero_info(f"Not tested: {error}")
        finally:
            callbacks[:] = before


def print_summary(trainer: Trainer, folder: Path | None, best: BestCheckpoint | None) -> None:
    """Print the metrics of the last stage, the run folder, the best checkpoint and the TensorBoard command."""
    table = Table.grid("", Column(overflow="fold"), padding=(0, 2))
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
        is_on_path = shutil.which("tensorboard") == str(tensorboard)
        command = "tensorboard" if is_on_path else shlex.quote(relative(tensorboard))
        table.add_row("see it", f"{command} --logdir {shlex.quote(relative(folder.parents[1]))}")
    # Not folded to 80 columns in a pipe or log file, so that paths can be copied.
    Console(width=None if sys.stdout.isatty() else 1000, markup=False).print(table)
