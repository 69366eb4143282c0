"""Shows how near images and prompts of each class lie."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from src.engine.system.errors import InputError
from src.engine.tensorboard.writers import writers

PIXELS = 24  # a side of what stands for one number


class SimilarityMatrix(Callback):
    """After an evaluation, draws the similarity of each class's images (rows) to its prompts (columns) in TensorBoard.

    White is the largest, black the smallest.

    Raises:
        InputError: the model compares no images with texts.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "similarity"):
            raise InputError("SimilarityMatrix needs a contrastive model: leave it out here")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: Trainer, task: Any, stage: str) -> None:
        if task.similarity is None or not trainer.is_global_zero or trainer.sanity_checking:
            return
        low, high = task.similarity.aminmax()
        grey = (task.similarity - low) / (high - low).clamp(min=1e-6)
        image = torch.kron(grey, torch.ones(PIXELS, PIXELS))
        for writer in writers(trainer):
            writer.add_image(f"{stage}/similarity", image, trainer.global_step, dataformats="HW")
