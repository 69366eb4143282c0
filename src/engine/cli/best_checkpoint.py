"""The best checkpoint of a run that was just trained."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from src.engine.runs.checkpoint import read_checkpoint
from src.engine.runs.run_record import best_metrics
from src.engine.runs.runs import relative
from src.engine.system.errors import raised_by_lightning


class BestCheckpoint:
    """The checkpoint that `--checkpoint` has chosen.

    Args:
        trainer: has trained the run.

    `metrics` are its validation metrics and its epoch; empty if there is no such checkpoint.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.path = getattr(trainer.checkpoint_callback, "best_model_path", "")
        self.is_saved = bool(self.path) and Path(self.path).exists()
        monitor = getattr(trainer.checkpoint_callback, "monitor", None)
        self.metrics = best_metrics(read_checkpoint(self.path), monitor) if self.is_saved else {}

    def test(self, model: LightningModule, datamodule: LightningDataModule | None) -> None:
        """Test it as `src.train test` does, or the last weights if there is no such checkpoint.

        Without a test step or test data, only says so.
        """
        for name, instance in (("test_step", model), ("test_dataloader", datamodule or model)):
            if not is_overridden(name, instance):
                rank_zero_info(f"Not tested: {type(instance).__name__} has no method {name}")
                return
        what = relative(Path(self.path)) if self.is_saved else "the last weights: no best checkpoint was saved"
        rank_zero_info(f"Testing {what}")
        model.on_load_checkpoint = partial(_without_callbacks, model.on_load_checkpoint)  # type: ignore[method-assign]
        model.strict_loading = False  # layers that a module builds for the test only stay as they are
        path = self.path if self.is_saved else None
        try:
            self.trainer.test(model, datamodule=datamodule, ckpt_path=path, weights_only=True, verbose=False)
        except TypeError as error:  # test_dataloader returns None
            if not raised_by_lightning(error) or "dataloader" not in str(error):
                raise
            rank_zero_info(f"Not tested: {error}")


def _without_callbacks(hook: Callable[[dict[str, Any]], None], checkpoint: dict[str, Any]) -> None:
    """Let callbacks that have trained, such as WeightAveraging, not put other weights in place of the checkpoint's."""
    hook(checkpoint)
    checkpoint.pop("callbacks", None)
