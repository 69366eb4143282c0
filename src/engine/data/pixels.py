"""Pixels of images as a network gets them."""

from typing import Any

import torch
from torch import Tensor


def normalise(pixels: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """Pixels of 0 to 255 -> float pixels with mean 0 and standard deviation 1.

    Args:
        pixels: (..., C, H, W) uint8 or float.
        mean: (C, 1, 1) or a number for all channels, on a scale of 0 to 1.
        std: (C, 1, 1) or a number, on a scale of 0 to 1.
    """
    # In place: on a CPU new memory costs more than the arithmetic.
    return pixels.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)


def pixel_statistics(data: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a DataModule's pixels, (C, 1, 1) each; default: 0 and 1."""
    values = (getattr(data, "pixel_mean", (0.0,)), getattr(data, "pixel_std", (1.0,)))
    mean, std = (torch.tensor(one).view(-1, 1, 1) for one in values)
    return mean, std
