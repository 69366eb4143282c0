"""Draws what raises a predicted number as a sequence logo (Schneider and Stephens 1990)."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from src.engine.tensorboard.figures import new_figure
from src.engine.tensorboard.writers import writers

PLACES = 60  # of longer sequences it would take minutes


class SequenceLogo(Callback):
    """Draws after the test how much each base at each place raises the prediction of a `Regressor`.

    Every base is put at every place of the sequences of the first test batch. Its height is its mean prediction
    minus the mean of all bases at that place: bases above the line raise the prediction. Sequences must have the same
    length, at most 60 bases; with `reverse_complement` nothing is drawn.
    """

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        tokens, mask, targets = batch
        is_drawn = not batch_idx and tokens.shape[1] <= PLACES and mask.all() and targets.is_floating_point()
        if not is_drawn or not trainer.is_global_zero or pl_module.device_mesh is not None:
            return  # with sharded weights all processes would have to compute
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        effects = torch.zeros(tokens.shape[1], len(data.numbers))  # (T, bases)
        for place in range(len(effects)):
            for base, number in enumerate(data.numbers.values()):
                changed = tokens.clone()
                changed[:, place] = number
                effects[place, base] = pl_module(changed, mask).mean()
        effects -= effects.mean(dim=1, keepdim=True)
        for writer in writers(trainer):
            figure = _letter_figure(effects.tolist(), list(data.numbers))
            writer.add_figure("test/sequence logo", figure, trainer.global_step)


def _letter_figure(effects: list[list[float]], letters: list[str]) -> Any:
    """A figure with a column of letters for each place, as high as their effects; the largest is farthest out."""
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    figure = new_figure(1.5 + 0.6 * len(effects), 3.5)
    axes = figure.add_subplot(xlabel="place", ylabel="change of the prediction", xlim=(0.5, len(effects) + 0.5))
    axes.set_xticks(range(1, len(effects) + 1))
    axes.axhline(0, color="black", linewidth=1)
    for place, column in enumerate(effects, start=1):
        ends = {True: 0.0, False: 0.0}  # above and below the line
        for height, letter in sorted(zip(column, letters, strict=True), key=lambda one: abs(one[0])):
            path = TextPath((0, 0), letter, size=1)
            box = path.get_extents()
            scale = Affine2D().translate(-box.x0, -box.y0).scale(0.9 / box.width, abs(height) / box.height)
            bottom = ends[height > 0] - (abs(height) if height < 0 else 0)
            shown = scale.translate(place - 0.45, bottom).transform_path(path)
            axes.add_patch(PathPatch(shown, color=f"C{letters.index(letter)}", linewidth=0))
            ends[height > 0] += height
    axes.autoscale_view(scalex=False)
    return figure
