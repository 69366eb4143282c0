"""Draws the similarity of each class's images and prompts."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from src.engine.system.errors import InputError
from src.engine.tensorboard.writers import writers

PIXELS = 24  # side of one matrix cell in the picture


class SimilarityMatrix(Callback):
    """Draws the similarity of each class's images (rows) and prompts (columns) in TensorBoard after an evaluation.

    White is the largest similarity, black the smallest.

    Raises:
        InputError: the model is not a `ContrastiveModel` and has no `similarity`.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "similarity"):
            raise InputError("SimilarityMatrix needs a ContrastiveModel: remove it from the callbacks")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        similarity: Any = pl_module.similarity
        if similarity is None or not trainer.is_global_zero or trainer.sanity_checking:
            return
        low, high = similarity.aminmax()
        image = torch.kron((similarity - low) / (high - low).clamp(min=1e-6), torch.ones(PIXELS, PIXELS))
        for writer in writers(trainer):
            stage = "test" if trainer.testing else "val"
            writer.add_image(f"{stage}/similarity", image, trainer.global_step, dataformats="HW")

    on_test_end = on_validation_end
