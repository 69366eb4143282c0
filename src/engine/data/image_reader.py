"""Reads image files for training: checks them, decodes them in threads or worker processes, and keeps them."""

import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from src.engine.data.batched import BatchDataset
from src.engine.data.image_cache import DecodedImages, keep_decoded
from src.engine.data.images import UNREADABLE, Ranges, Shrink, deep_image, flatten, image_error, read_image, usual_range
from src.engine.data.labelled_files import LabelledDataModule, read_all
from src.engine.data.loading import announce
from src.engine.data.pixels import normalise, pixel_statistics
from src.engine.data.workers import NumWorkers, check_num_workers, file_workers
from src.engine.system.cores import cores_per_process
from src.engine.system.errors import InputError, check_least

Batch = tuple[Tensor, Tensor]


class ImageReader(BatchDataset):
    """A dataset of image files, decoded on access; a subclass makes batches of them, in `__getitems__`.

    Args:
        files: paths of the images.
        shrink: makes large images smaller, as far as the network's input allows.
        ranges: see `read_image`.
    """

    def __init__(self, files: list[Path], shrink: Shrink, ranges: Ranges) -> None:
        # Not a list of objects: their counts of references change on access, so each worker would copy them.
        self._paths = np.array([os.fsencode(file) for file in files], dtype=np.bytes_)
        self.shrink = shrink
        self.ranges = ranges
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

    def in_threads(self, function: Callable[[int], Any], indices: Sequence[int]) -> list[Any]:
        """The results of a function for each index."""
        threads = 1 if get_worker_info() else min(self.threads, len(indices))
        if threads == 1:
            return [function(index) for index in indices]
        with ThreadPoolExecutor(threads) as pool:  # PIL and torch let other threads run while they compute
            size = -(-len(indices) // threads)
            parts = [indices[first : first + size] for first in range(0, len(indices), size)]
            return list(chain.from_iterable(pool.map(lambda part: [function(index) for index in part], parts)))


class ImageFilesDataModule(LabelledDataModule):
    """A DataModule whose parts are an `ImageReader` each: batches are pixels (B, 3, S, S) uint8 and targets (B, ...).

    Args:
        image_size: S, height and width of the network's input in pixels, at least 4.
        batch_size: images per batch over all processes, at least 1.
        num_workers: processes that decode images, or `auto`; 0: threads of the training process decode them.
        cache: keep decoded training and validation images in memory, if enough is free.

    Raises:
        InputError: an argument is out of range.
    """

    input_kind = "image"

    def __init__(self, image_size: int, batch_size: int, num_workers: NumWorkers, cache: bool) -> None:
        super().__init__()
        check_least(4, image_size=image_size)
        check_least(1, batch_size=batch_size)
        check_num_workers(num_workers)
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.cache = cache
        self._has_tried_to_cache = False
        self.shrink = Shrink(image_size)
        self.value_ranges: Ranges = {}
        """The values that are black and white in images of more than 8 bits; set by `setup`."""
        self._statistics = pixel_statistics(self)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise a whole batch, on the training device."""
        pixels, targets = batch
        if self._statistics[0].device != pixels.device:
            self._statistics = self._statistics[0].to(pixels.device), self._statistics[1].to(pixels.device)
        images = normalise(pixels, *self._statistics)
        if self.trainer is not None:  # Lightning converts floats before this method, when these were uint8
            images = self.trainer.precision_plugin.convert_input(images)
        return images, targets

    def network_arguments(self) -> dict[str, Any]:
        """The network arguments that depend on the data."""
        self.setup("fit")
        return {"num_classes": self.num_classes, "in_channels": 3, "image_size": self.image_size}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "value_ranges": self.value_ranges}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use a checkpoint's labels and ranges of values instead of the files' own; call before `setup`."""
        super().load_state_dict(state_dict)
        self.value_ranges = restored_ranges(state_dict.get("value_ranges", {}))

    def _loader(self, files: ImageReader, shuffle: bool = False) -> DataLoader[Batch]:
        if self.cache and not self._has_tried_to_cache:
            self._has_tried_to_cache = True
            keep_decoded((self.train_set, self.val_set), self.trainer)
        return super()._loader(files, shuffle)

    def _workers(self, files: ImageReader, shuffle: bool) -> int:
        return self.workers(files, self.trainer, report=shuffle)

    def workers(self, files: ImageReader, trainer: Any, report: bool) -> int:
        """The number of worker processes that decode files; if 0, threads decode them."""
        workers, files.threads = file_workers(self.num_workers, trainer), cores_per_process(trainer)
        if report:
            by = f"{workers} worker processes" if workers else f"{files.threads} threads of the training process"
            rank_zero_info(f"Images are decoded by {by} (num_workers {self.num_workers})")
        return workers


def rgb(image: Image.Image, shrink: Shrink) -> Image.Image:
    """An image in RGB, shrunk and without transparency."""
    image = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
    image = flatten(shrink(image))
    return image if image.mode == "RGB" else image.convert("RGB")


def check_files(files: list[Path], known: Ranges) -> Ranges:
    """The ranges of values of deep images, see `read_image`; reported.

    Args:
        files: paths of the images.
        known: ranges that are kept, such as those of a checkpoint.

    Raises:
        InputError: a file is not an image; damage in its pixels shows only on decoding.
    """

    def check(file: Path) -> tuple[str, float, float] | None:
        with Image.open(file) as image:
            if deep := deep_image(image):
                return deep[1:4]
            has_deep_colours = any(re.search("(?<!BGR);16", str(one.args)) for one in image.tile)
            image.verify()
        return ("colours", 0.0, 0.0) if has_deep_colours else None

    checked = read_all(files, files, check, image_error)
    if deep_colours := [file for file, found in zip(files, checked, strict=True) if found and found[0] == "colours"]:
        announce(
            f"{len(deep_colours):,} images have colours of 16 bits, of which only the upper 8 are read, such as"
            f" {deep_colours[0]}: if they are dark, scale their values to the full range"
        )
    ranges = dict(known)
    for kind in ("integer", "float"):
        if deep := [found for found in checked if found and found[0] == kind]:
            own = usual_range(kind, min(low for _, low, _ in deep), max(high for _, _, high in deep))
            ranges[kind] = low, high = known.get(kind, own)
            example = files[checked.index(deep[0])]
            announce(f"{len(deep):,} images have more than 8 bits, such as {example}: {low:g} is black, {high:g} white")
    return ranges


def restored_ranges(state: Any) -> Ranges:
    """The ranges in a checkpoint; raises InputError if they are not valid."""
    try:
        ranges = {str(kind): (float(low), float(high)) for kind, (low, high) in dict(state).items()}
        if not all(-math.inf < low < high < math.inf for low, high in ranges.values()):
            raise ValueError("not finite, or black is not below white")
    except (TypeError, ValueError) as error:
        wanted = "pairs of finite numbers, black below white"
        raise InputError(f"its value_ranges are {state!r:.80}, not {wanted}") from error
    return ranges
