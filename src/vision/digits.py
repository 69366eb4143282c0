"""Converts pictures of digits, of any size and colour mode, to MNIST's format."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.engine.data.images import flatten

INVERTED = "inverted: dark ink on a light ground"
SIDE, BOX = 28, 20  # size in pixels of an MNIST image and of the square that its digit fits into
FAINT = 24  # contrast (of 255) up to which a picture is empty; after scaling to full contrast, ink is above twice this


def digit_pixels(image: Image.Image) -> Tensor:
    """Convert a picture of one digit to MNIST's format (LeCun et al. 1998): (1, 28, 28) uint8.

    A picture with a light border (median above 127) is dark ink on a light ground and is inverted. In a picture that
    is not 28 x 28, the digit is then scaled to fit into 20 x 20 and centred by its centre of mass.
    """
    grey, _ = light_ink(image)
    return torch.from_numpy((grey if grey.shape == (SIDE, SIDE) else _fit(grey)).copy()).unsqueeze(0)


def light_ink(image: Image.Image) -> tuple[Any, str]:
    """(H, W) uint8, light ink on a dark ground, and a note if it was inverted."""
    grey = np.asarray(flatten(image).convert("L"))
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return (255 - grey, INVERTED) if np.median(border) > 127 else (grey, "")


def _fit(grey: Any) -> Any:
    """Scale and centre a digit: (H, W) uint8, light ink on a dark ground -> (28, 28) uint8."""
    ground = int(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))
    ink = grey.astype(np.int16) - ground
    strength = int(ink.max(initial=0))
    if strength <= FAINT:
        return np.zeros((SIDE, SIDE), dtype=np.uint8)  # an empty picture
    ink = (ink.clip(0) * 255.0 / strength).astype(np.uint8)  # full contrast, as in MNIST
    cut = Image.fromarray(ink).crop(Image.fromarray(ink > 2 * FAINT).getbbox())
    scale = BOX / max(cut.size)
    size = [max(1, round(side * scale)) for side in cut.size]
    small = np.asarray(cut.resize((size[0], size[1]), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC))
    weight = small.astype(np.float64)
    centre = [(weight.sum(axis=1 - axis) @ np.arange(weight.shape[axis])) / weight.sum() for axis in (0, 1)]
    height, width = small.shape
    top, left = (
        min(max(round(SIDE / 2 - 0.5 - position), 0), SIDE - side)
        for position, side in zip(centre, (height, width), strict=True)
    )
    result = np.zeros((SIDE, SIDE), dtype=np.uint8)
    result[top : top + height, left : left + width] = small
    return result
