"""Image files as pixels of one size, with random crops."""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import get_worker_info

from src.engine.data.batched import BatchDataset
from src.engine.data.image_cache import DecodedImages
from src.engine.data.images import CROP_RATIO, UNREADABLE, Ranges, Shrink, flatten, image_error, read_image
from src.engine.system.errors import InputError
from src.engine.system.randomness import derive_seed

Batch = tuple[Tensor, Tensor]
Box = tuple[int, int, int, int]  # top, left, height, width

CROP_TRIES = 10


class ImageFiles(BatchDataset):
    """Image files, decoded on access.

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
        # Not lists of objects: their counts of references change on access, so each worker would copy them.
        self._paths = np.array([os.fsencode(file) for file in files], dtype=np.bytes_)
        self.targets = torch.tensor(targets)
        self.shrink = shrink
        self.ranges = ranges
        self.flip = flip
        self.threads = 1
        """Images that are decoded at the same time, except in worker processes."""
        self.cache: DecodedImages | None = None
        """Memory for decoded images."""

    def __getstate__(self) -> dict[str, Any]:
        # For a worker process that is not forked: it cannot share the memory, and decodes each time.
        return {**self.__dict__, "cache": None}

    @property
    def files(self) -> list[Path]:
        """The paths of the images."""
        return [self._file(index) for index in range(len(self))]

    def _file(self, index: int) -> Path:
        return Path(os.fsdecode(self._paths[index]))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Pixels (B, 3, S, S) uint8 and targets (B,) int64.

        Crops and flips depend only on run seed, epoch and image.
        """
        epoch_seed = getattr(indices, "epoch_seed", 0)  # 0: not in training
        pixels = self.in_threads(lambda index: self._pixels(index, Random(derive_seed(epoch_seed, index))), indices)
        return torch.stack(pixels), self.targets[list(indices)]

    def in_threads(self, function: Callable[[int], Any], indices: Sequence[int]) -> list[Any]:
        """The results of a function for each index."""
        threads = 1 if get_worker_info() else min(self.threads, len(indices))
        if threads == 1:
            return [function(index) for index in indices]
        with ThreadPoolExecutor(threads) as pool:  # PIL and torch let other threads run while they compute
            size = -(-len(indices) // threads)
            parts = [indices[first : first + size] for first in range(0, len(indices), size)]
            return list(chain.from_iterable(pool.map(lambda part: [function(index) for index in part], parts)))

    def _pixels(self, index: int, random: Random) -> Tensor:
        decoded = self.decoded(index)
        (size, crop), (height, width, _) = self.shrink, decoded.shape
        box = random_box(height, width, crop, random) if crop < 1 else central_box(height, width)
        pixels = resized(decoded, box, size)
        return pixels.flip(-1) if self.flip and random.random() < 0.5 else pixels

    def decoded(self, index: int) -> Any:
        """The image as (H, W, 3) uint8, shrunk."""
        if self.cache and (found := self.cache[index]) is not None:
            return found
        try:
            decoded = np.asarray(rgb(read_image(self._file(index), self.ranges, self.shrink), self.shrink))
        except UNREADABLE as error:
            file = self._file(index)
            raise InputError(f"{file} cannot be used ({image_error(file, error)}): remove or fix it") from error
        if self.cache:
            self.cache[index] = decoded
        return decoded


def restored_ranges(state: Any) -> Ranges:
    """The ranges in a checkpoint; raises InputError if they are not valid."""
    try:
        ranges = {str(kind): (float(low), float(high)) for kind, (low, high) in dict(state).items()}
    except (TypeError, ValueError) as error:
        raise InputError(f"its value_ranges are {state!r:.80}, not pairs of numbers") from error
    if not all(-math.inf < low < high < math.inf for low, high in ranges.values()):
        raise InputError(f"its value_ranges are {state!r:.80}, not pairs of finite numbers, black below white")
    return ranges


def rgb(image: Image.Image, shrink: Shrink) -> Image.Image:
    """An image in RGB, shrunk and without transparency."""
    image = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
    image = flatten(shrink(image))
    return image if image.mode == "RGB" else image.convert("RGB")


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
