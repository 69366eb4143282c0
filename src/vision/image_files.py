"""Labelled image files as pixels of one size, with random crops."""

import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from src.engine.data.image_reader import ImageReader
from src.engine.data.images import CROP_RATIO, Ranges, Shrink
from src.engine.system.randomness import derive_seed

Batch = tuple[Tensor, Tensor]
Box = tuple[int, int, int, int]  # top, left, height, width

CROP_TRIES = 10


class ImageFiles(ImageReader):
    """Image files with class numbers.

    Args:
        files: paths of the images.
        targets: class number of each image.
        shrink: the size S of the network's input, and the smallest share of an image that a random crop keeps.
        ranges: see `read_image`.
        flip: mirror left to right with probability 0.5.
    """

    def __init__(
        self, files: list[Path], targets: list[int], shrink: Shrink, ranges: Ranges, flip: bool = False
    ) -> None:
        super().__init__(files, shrink, ranges)
        self.targets = torch.tensor(targets)
        self.flip = flip

    def __getitems__(self, indices: list[int]) -> Batch:
        """Pixels (B, 3, S, S) uint8 and targets (B,) int64.

        Crops and flips depend only on run seed, epoch and image.
        """
        epoch_seed = getattr(indices, "epoch_seed", 0)  # 0: not in training
        pixels = self.in_threads(lambda index: self._pixels(index, Random(derive_seed(epoch_seed, index))), indices)
        return torch.stack(pixels), self.targets[list(indices)]

    def _pixels(self, index: int, random: Random) -> Tensor:
        decoded = self.decoded(index)
        (size, crop), (height, width, _) = self.shrink, decoded.shape
        box = random_box(height, width, crop, random) if crop < 1 else central_box(height, width)
        pixels = resized(decoded, box, size)
        return pixels.flip(-1) if self.flip and random.random() < 0.5 else pixels


def central_box(height: int, width: int) -> Box:
    """The largest square in the middle of an image."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def random_box(height: int, width: int, crop: float, random: Random) -> Box:
    """A random part of an image, as torchvision's RandomResizedCrop draws it.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        crop: smallest share of the area.
        random: source of randomness.
    """
    for _ in range(CROP_TRIES):
        area = height * width * random.uniform(crop, 1)
        ratio = math.exp(random.uniform(math.log(CROP_RATIO), -math.log(CROP_RATIO)))
        high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < high <= height and 0 < wide <= width:
            return random.randint(0, height - high), random.randint(0, width - wide), high, wide
    # The image is long and narrow: the largest part in its middle.
    high, wide = min(height, round(width / CROP_RATIO)), min(width, round(height / CROP_RATIO))
    return (height - high) // 2, (width - wide) // 2, high, wide


def resized(image: Any, box: Box, size: int) -> Tensor:
    """A part of an image (H, W, 3) uint8, scaled to (3, size, size) uint8."""
    top, left, height, width = box
    part = torch.from_numpy(np.array(image[top : top + height, left : left + width]))  # a copy is faster than strides
    return F.interpolate(part.permute(2, 0, 1)[None], (size, size), mode="bilinear", antialias=True)[0]
