"""Your own images: one folder per class, or a table of paths and labels."""

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from src.engine.data.image_reader import ImageFilesDataModule, ImageReader, check_files, rgb
from src.engine.data.images import CROP_RATIO, Ranges, Shrink
from src.engine.data.labelled_files import Columns, content_keys, labelled_files, split_files
from src.engine.data.workers import NumWorkers
from src.engine.system.errors import InputError
from src.engine.system.randomness import derive_seed

# Mean and standard deviation of ImageNet's channels; torchvision's weights expect them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_TRIES = 10

Batch = tuple[Tensor, Tensor]
Box = tuple[int, int, int, int]  # top, left, height, width


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


class ImageFolderDataModule(ImageFilesDataModule):
    """Your own labelled images, of any size, greyscale or colour.

    Args:
        path: a folder with one folder of images per class, or a .csv, .tsv, .jsonl or .parquet table of paths
            (relative to the table) and labels.
        val_path: the same for validation. Default: `val_share` of `path`.
        test_path: the same for test. Default: `test_share` of `path`.
        path_column: the table's column with the paths.
        label_column: the table's column with the labels.
        group_column: the table's column with groups, such as patients, each of which is in one part only.
            Default: none.
        image_size: S, height and width of the network's input in pixels, at least 4.
        batch_size: images per batch over all processes, at least 1.
        val_share: share of `path` for validation, in (0, 1); stratified, the same split in every run.
        test_share: share of `path` for testing, in (0, 1); val_share + test_share must be below 1.
        fold: validate on this fold of training and validation part, 1 to folds, and train on the others; default: none.
        folds: number of folds, at least 2.
        crop: smallest share of a training image's area that a random crop keeps, in (0, 1]; 1: no cropping.
        flip: mirror training images left to right with probability 0.5.
        num_workers: processes that decode images; 0: threads of the training process decode them; `auto`: 0 if the
            network is on a CPU, else as many as there are cores for this process, less one, and at most 16.
        cache: keep decoded training and validation images in memory, shrunk as far as `image_size` allows, if they take
            at most half of the memory that is free.

    Batches are pixels (B, 3, S, S) uint8, which `on_after_batch_transfer` normalises like ImageNet to float32, and
    targets (B,) int64, indices into `labels`. Validation and test scale an image's shorter side to S and crop the
    centre.

    Raises:
        InputError: an argument is out of range, `path` does not exist, there are fewer than two classes or too few
            images, or files cannot be read.
    """

    image_example = "ImageOps.fit(image, {size}, Image.Resampling.BILINEAR)"  # as `prepare`, in other programs
    pixel_mean, pixel_std = MEAN, STD

    def __init__(
        self,
        path: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        path_column: str = "path",
        label_column: str = "label",
        group_column: str | None = None,
        image_size: int = 64,
        batch_size: int = 32,
        val_share: float = 0.1,
        test_share: float = 0.1,
        crop: float = 0.5,
        flip: bool = True,
        num_workers: NumWorkers = "auto",
        cache: bool = False,
        fold: int | None = None,
        folds: int = 5,
    ) -> None:
        super().__init__(image_size, batch_size, num_workers, cache)
        if not 0 < crop <= 1:
            raise InputError(f"crop {crop} is out of range: give a share of the area above 0 and up to 1")
        paths = {"train": path, "val": val_path, "test": test_path}
        self.use_paths(paths, "images", (val_share, test_share), (fold, folds))
        self.columns = Columns(path_column, label_column, group_column)
        self.save_hyperparameters()
        self.crop = crop
        self.flip = flip
        self.data_source = path or ""

    def setup(self, stage: str) -> None:
        """Find, check and split the files, in every process."""
        if hasattr(self, "train_set"):
            return
        if not self.data_source:
            raise InputError("no images given: give --data.path a folder with one folder of images per class")
        found = labelled_files(self.paths, self.columns, known=self.restored)
        files = [one.file for one in found]
        self.value_ranges = check_files(files, self.value_ranges)
        split = split_files(found, files, content_keys(files), self.shares, "images", self.fold)
        parts = self.with_targets(split, self.data_source, "images")
        self.train_set, self.val_set, self.test_set = (self.dataset(*own, part) for part, own in parts.items())

    def prepare(self, inputs: Sequence[Image.Image]) -> Tensor:
        """The pixels of images as in validation, not normalised, (B, 3, S, S) uint8."""
        decoded = [np.asarray(rgb(image, self.shrink)) for image in inputs]
        return torch.stack([resized(one, central_box(*one.shape[:2]), self.image_size) for one in decoded])

    def dataset(self, files: list[Path], targets: list[int], part: str) -> ImageFiles:
        """The images of a part: `train`, `val` or `test`."""
        if part != "train":
            return ImageFiles(files, targets, self.shrink, self.value_ranges)
        return ImageFiles(files, targets, Shrink(self.image_size, self.crop), self.value_ranges, self.flip)


def central_box(height: int, width: int) -> Box:
    """The largest square in the middle of an image."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def random_box(height: int, width: int, crop: float, random: Random) -> Box:
    """A random part of an image, of at least `crop` of its area, as torchvision's RandomResizedCrop draws it."""
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
