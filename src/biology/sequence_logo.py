"""Draws what raises a predicted number as a sequence logo (Schneider and Stephens 1990)."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from src.engine.tensorboard.figures import letter_figure
from src.engine.tensorboard.writers import writers


class SequenceLogo(Callback):
    """Draws after the test how much each base at each place raises the prediction of a `Regressor`.

    Every base is put at every place of the sequences of the first test batch. Its height is its mean prediction
    minus the mean of all bases at that place: bases above the line raise the prediction. Sequences must
    have the same length; with `reverse_complement` nothing is drawn.
    """

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        tokens, mask, targets = batch
        if batch_idx or not (trainer.is_global_zero and mask.all() and targets.is_floating_point()):
            return
        if pl_module.device_mesh is not None:  # sharded weights: all processes would have to compute
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        effects = torch.zeros(tokens.shape[1], len(data.numbers))  # (T, bases)
        for place in range(len(effects)):
            for base, number in enumerate(data.numbers.values()):
                changed = tokens.clone()
                changed[:, place] = number
                effects[place, base] = pl_module(changed, mask).mean()
        effects -= effects.mean(dim=1, keepdim=True)
        for writer in writers(trainer):
            writer.add_figure(
                "test/sequence logo", letter_figure(effects.tolist(), list(data.numbers)), trainer.global_step
            )
