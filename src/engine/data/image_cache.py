"""Keeps decoded images in memory that worker processes share."""

import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image

from src.engine.data.files import in_threads
from src.engine.data.images import Shrink
from src.engine.data.loading import announce

# Files of Linux with a container's limit and use of memory, for both versions of control groups.
CONTAINER_MEMORY = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


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


def keep_decoded(parts: Sequence[Any], trainer: Any) -> None:
    """Give datasets a `cache` for decoded images, if these take at most half of the memory that is free; reported.

    Args:
        parts: datasets with `files` and `shrink`.
        trainer: says how many processes of this machine have such a cache; None: one.
    """
    sizes = [decoded_sizes(part.files, part.shrink) for part in parts]
    processes = max(1, trainer.world_size // trainer.num_nodes) if trainer else 1
    needed, free = 3 * processes * sum(map(sum, sizes)), available_memory()
    line = f"decoded images take {needed / 1e6:,.0f} MB of memory, of {free / 1e6:,.0f} MB that are free"
    if free and needed > free / 2:
        announce(f"--data.cache: {line}, which is more than half: they are decoded in each epoch")
        return
    rank_zero_info(f"Cache: {line}")
    for part, own in zip(parts, sizes, strict=True):
        part.cache = DecodedImages(own)


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
