"""Your own images: one folder per class, or a table of paths and labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from src.engine.data.folds import check_fold
from src.engine.data.image_cache import keep_decoded
from src.engine.data.image_reader import ImageReader, check_files, restored_ranges, rgb
from src.engine.data.images import Ranges, Shrink
from src.engine.data.labelled_files import Columns, LabelledDataModule, content_keys, labelled_files, split_files
from src.engine.data.pixels import normalise, pixel_statistics
from src.engine.data.split import check_paths, check_shares
from src.engine.data.workers import NumWorkers, check_num_workers, file_workers
from src.engine.system.cores import cores_per_process
from src.engine.system.errors import InputError, check_least
from src.vision.image_files import Batch, ImageFiles, central_box, resized

# Mean and standard deviation of ImageNet's channels; torchvision's weights expect them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageFolderDataModule(LabelledDataModule):
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

    input_kind = "image"
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
        super().__init__()
        check_least(4, image_size=image_size)
        check_least(1, batch_size=batch_size)
        if not 0 < crop <= 1:
            raise InputError(f"crop {crop} is out of range: give a share of the area above 0 and up to 1")
        check_num_workers(num_workers)
        check_paths(path, val_path, test_path, "images")
        check_shares(val_share, test_share)
        check_fold(fold, folds)
        self.save_hyperparameters()
        self.paths = {"train": path, "val": val_path, "test": test_path}
        self.columns = Columns(path_column, label_column, group_column)
        self.image_size = image_size
        self.shrink = Shrink(image_size)
        self.batch_size = batch_size
        self.shares = (val_share, test_share)
        self.fold = (fold, folds)
        self.crop = crop
        self.flip = flip
        self.num_workers = num_workers
        self.cache = cache
        self._has_tried_to_cache = False
        self._statistics = pixel_statistics(self)
        self.data_source = path or ""
        self.value_ranges: Ranges = {}
        """The values that are black and white in images of more than 8 bits; set by `setup`."""

    def setup(self, stage: str) -> None:
        """Find, check and split the files, in every process.

        Raises:
            InputError: there are no images, or some cannot be used.
        """
        if hasattr(self, "train_set"):
            return
        if not self.data_source:
            raise InputError("no images given: give --data.path a folder with one folder of images per class")
        found = labelled_files(self.paths, self.columns)
        self.refuse_new_classes(found)
        files = [one.file for one in found]
        self.value_ranges = check_files(files, self.value_ranges)
        parts = split_files(found, files, content_keys(files), self.shares, "images", self.fold)
        labels = {part: [label for _, label in own] for part, own in parts.items()}
        numbers = self.number_labels(labels, self.data_source, "images")
        if empty := [part for part, own in parts.items() if not own]:
            raise InputError(
                f"{self.data_source} has {len(files)} images, too few for a {empty[0]} part: give 3 per class"
            )
        self.train_set, self.val_set, self.test_set = (
            self.dataset([file for file, _ in own], numbers[part], part) for part, own in parts.items()
        )

    def prepare(self, inputs: Sequence[Image.Image]) -> Tensor:
        """The pixels of images as in validation, not normalised, (B, 3, S, S) uint8."""
        decoded = [np.asarray(rgb(image, self.shrink)) for image in inputs]
        return torch.stack([resized(one, central_box(*one.shape[:2]), self.image_size) for one in decoded])

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
        """The number of worker processes that decode files; without, they are decoded by threads."""
        workers, files.threads = file_workers(self.num_workers, trainer), cores_per_process(trainer)
        if report:
            by = f"{workers} worker processes" if workers else f"{files.threads} threads of the training process"
            rank_zero_info(f"Images are decoded by {by} (num_workers {self.num_workers})")
        return workers

    def dataset(self, files: list[Path], targets: list[int], part: str) -> ImageFiles:
        """The images of a part: `train`, `val` or `test`."""
        if part != "train":
            return ImageFiles(files, targets, self.shrink, self.value_ranges)
        return ImageFiles(files, targets, Shrink(self.image_size, self.crop), self.value_ranges, self.flip)
