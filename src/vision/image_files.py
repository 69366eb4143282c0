"""Image files as pixels of one size, with random crops, and a cache of what was decoded."""

import hashlib
import math
import mmap
import os
from collections import Counter
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
from src.engine.data.files import in_threads
from src.engine.data.images import CROP_RATIO, UNREADABLE, Ranges, Shrink, flatten, image_error, read_image
from src.engine.data.loading import Indices
from src.engine.system.errors import InputError
from src.engine.system.randomness import derive_seed

Batch = tuple[Tensor, Tensor]
Box = tuple[int, int, int, int]  # top, left, height, width

CROP_TRIES = 10

# Files of Linux with a container's limit and use of memory, for both versions of control groups.
CONTAINER_MEMORY = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


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
        epoch_seed = indices.epoch_seed if isinstance(indices, Indices) else 0
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


class DecodedImages:
    """Decoded images in memory that worker processes share, if they are forked; filled as images are decoded.

    Args:
        sizes: pixels of each image.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.ends = np.cumsum(sizes, dtype=np.int64) * 3
        # Anonymous memory is zero, and taken only when it is written to.
        self.pixels = np.frombuffer(mmap.mmap(-1, int(self.ends[-1])), np.uint8)
        self.shapes = np.frombuffer(mmap.mmap(-1, 8 * len(sizes)), np.int32).reshape(-1, 2)

    def __getitem__(self, index: int) -> Any:
        """The image as (H, W, 3) uint8; None if it was not decoded yet."""
        height, width = map(int, self.shapes[index])
        end = self.ends[index]
        return self.pixels[end - height * width * 3 : end].reshape(height, width, 3) if height else None

    def __setitem__(self, index: int, decoded: Any) -> None:
        end = self.ends[index]
        if end - decoded.size != (self.ends[index - 1] if index else 0):
            return  # the file has changed
        self.pixels[end - decoded.size : end] = decoded.ravel()
        self.shapes[index] = decoded.shape[:2]  # last: other processes then use the pixels


def available_memory() -> int:
    """Bytes that programs can still take, or that the container's limit leaves; 0 if the system does not say."""
    memory = Path("/proc/meminfo")
    if not memory.is_file():
        return 0
    found = int(memory.read_text(encoding="utf-8").split("MemAvailable:")[1].split()[0]) * 1024
    for limit, used in CONTAINER_MEMORY:
        try:
            found = min(found, max(0, int(Path(limit).read_text()) - int(Path(used).read_text())))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found


def decoded_sizes(files: Sequence[Path], shrink: Shrink) -> list[int]:
    """The number of pixels of each image when it is decoded and shrunk, from the heads of the files."""

    def size(file: Path) -> int:
        with Image.open(file) as opened:
            shrink.draft(opened)
            factor = shrink.factor(*opened.size)
            return math.ceil(opened.width / factor) * math.ceil(opened.height / factor)

    return in_threads(size, files)


def content_keys(files: Sequence[Path]) -> list[Any]:
    """A key for each file, equal for files with the same content; files are read only as far as they look equal."""
    keys = in_threads(_size, files, "Comparing files")
    for read in (_middle, _whole):
        keys = _with_more(keys, files, read)
    return keys


def _with_more(keys: list[Any], files: Sequence[Path], read: Callable[[Path], Any]) -> list[Any]:
    """The keys, with something more where several files have the same."""
    counts = Counter(keys)
    same = [number for number, key in enumerate(keys) if counts[key] > 1]
    more = in_threads(read, [files[number] for number in same], "Comparing files")
    keys = [*keys]
    for number, one in zip(same, more, strict=True):
        keys[number] = (keys[number], one)
    return keys


def _size(file: Path) -> int:
    return file.stat().st_size


def _middle(file: Path) -> bytes:
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size // 2 - 2048))
        return hashlib.sha256(opened.read(4096)).digest()


def _whole(file: Path) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


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
