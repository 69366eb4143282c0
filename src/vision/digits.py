"""Pictures of digits, of any size and mode, as MNIST has them."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.engine.data.images import flatten

INVERTED = "inverted: dark ink on a light ground"
SIDE, BOX = 28, 20  # pixels of a digit's image, and of the square that holds its ink
FAINT = 24  # a pixel above this is ink, of 255


def digit_pixels(image: Image.Image) -> tuple[Tensor, str]:
    """A picture of one digit, of any size, in the way of MNIST (LeCun et al. 1998), and what was noticed about it.

    Where the border is lighter than the middle of the scale, it is dark ink on a light ground and is inverted. A
    picture of 28 x 28 is then taken as it is; in any other the ink is fitted into 20 x 20 and its centre of mass put in
    the middle.

    Returns:
        (1, 28, 28) uint8, and a note, empty where there is nothing to say.
    """
    grey = np.asarray(flatten(image).convert("L"))  # (H, W)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    note = INVERTED if np.median(border) > 127 else ""
    if note:
        grey = 255 - grey
    if grey.shape != (SIDE, SIDE):
        grey = _fit(grey)
    return torch.from_numpy(grey.copy()).unsqueeze(0), note


def _fit(grey: Any) -> Any:
    """(H, W) uint8, light ink on a dark ground -> (28, 28) uint8."""
    ground = int(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))
    ink = grey.astype(np.int16) - ground
    strength = int(ink.max(initial=0))
    if strength <= FAINT:
        return np.zeros((SIDE, SIDE), dtype=np.uint8)  # an empty sheet
    ink = (ink.clip(0) * 255.0 / strength).astype(np.uint8)  # as full as MNIST's
    rows, columns = (np.flatnonzero((ink > 2 * FAINT).any(axis=axis)) for axis in (1, 0))
    cut = Image.fromarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = BOX / max(cut.size)
    size = [max(1, round(side * scale)) for side in cut.size]
    small = np.asarray(cut.resize((size[0], size[1]), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC))
    weight = small.astype(np.float64)
    places = [(weight.sum(axis=1 - axis) @ np.arange(weight.shape[axis])) / weight.sum() for axis in (0, 1)]
    height, width = small.shape
    top, left = (
        min(max(round(SIDE / 2 - 0.5 - place), 0), SIDE - side)
        for place, side in zip(places, (height, width), strict=True)
    )
    whole = np.zeros((SIDE, SIDE), dtype=np.uint8)
    whole[top : top + height, left : left + width] = small
    return whole
