"""Your own images with boxes: COCO JSON, or a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from src.engine.data.image_reader import ImageFilesDataModule, ImageReader, check_files, rgb
from src.engine.data.images import Ranges, Shrink
from src.engine.data.labelled_files import Columns, LabelledFile, content_keys, split_files
from src.engine.data.labelled_tables import local_paths
from src.engine.data.labels import report_classes
from src.engine.data.split import PARTS
from src.engine.data.workers import NumWorkers
from src.engine.system.addresses import local_path
from src.engine.system.errors import InputError
from src.engine.system.randomness import derive_seed
from src.vision.boxes import annotation_file, box_targets, check_boxes, read_boxes
from src.vision.image_folder import MEAN, STD, Batch

SMALLEST_CROP = 0.09  # share of the area, of RandomIoUCrop


class BoxFiles(ImageReader):
    """Image files with boxes.

    Args:
        files: paths of the images.
        targets: for each image boxes (N, 4) float, as shares of width and height, and classes (N,) int64.
        transform: maps an image in RGB, and a dict of boxes and labels, to pixels (3, S, S) uint8 and that dict.
        shrink: see `ImageReader`.
        ranges: see `read_image`.
        count: number of boxes in the targets of an image, at least those of any image.
    """

    def __init__(
        self, files: list[Path], targets: Any, transform: Any, shrink: Shrink, ranges: Ranges, count: int
    ) -> None:
        super().__init__(files, shrink, ranges)
        self.boxes = targets
        self.transform = transform
        self.count = count

    def __getitems__(self, indices: list[int]) -> Batch:
        """Pixels (B, 3, S, S) uint8 and targets (B, count, 5) float.

        In training, the transform's randomness depends only on run seed, epoch and image.
        """
        epoch_seed = getattr(indices, "epoch_seed", 0)  # 0: not in training
        samples = []
        with torch.random.fork_rng(devices=[]):
            for index, decoded in zip(indices, self.in_threads(self.decoded, indices), strict=True):
                torch.default_generator.manual_seed(derive_seed(epoch_seed, index))
                samples.append(self._transformed(Image.fromarray(decoded), *self.boxes[index]))
        pixels, targets = zip(*samples, strict=True)
        return torch.stack(pixels), torch.stack(targets)

    def _transformed(self, image: Image.Image, boxes: Tensor, classes: Tensor) -> Batch:
        sides = torch.tensor([image.width, image.height] * 2)
        given = tv_tensors.BoundingBoxes(boxes * sides, format="XYXY", canvas_size=(image.height, image.width))
        pixels, found = self.transform(image, {"boxes": given, "labels": classes})
        return pixels, box_targets(found["boxes"] / pixels.shape[-1], found["labels"], self.count)


class ImageBoxesDataModule(ImageFilesDataModule):
    """Your own images with labelled boxes, of any size, greyscale or colour.

    Args:
        path: a .json file in COCO's format; or a .csv, .tsv, .jsonl or .parquet table with the columns file, x1, y1,
            x2, y2 (pixels) and label, one row per box; or a folder that holds one such file.
        images: folder that the names of images are relative to; default: that of the file.
        image_size: S, height and width of the network's input in pixels, a multiple of 32; images are scaled to it
            without regard to their aspect ratio.
        batch_size: images per batch over all processes, at least 1.
        val_share: share of the images for validation, in (0, 1); the same split in every run.
        test_share: share of the images for testing, in (0, 1); val_share + test_share must be below 1.
        crop: cut out a random part of a training image that has a box (Liu et al. 2016), with probability 6/7.
        flip: mirror training images left to right with probability 0.5.
        num_workers: as for `ImageFolderDataModule`.
        cache: as for `ImageFolderDataModule`.
        fold: validate on this fold of training and validation part, 1 to folds, and train on the others; default: none.
        folds: number of folds, at least 2.

    Batches are pixels (B, 3, S, S) uint8, which `on_after_batch_transfer` normalises, and targets (B, T, 5) float32:
    x1, y1, x2 and y2 as shares of width and height, and the class, an index into `labels`; class -1 in rows after the
    last box.

    Raises:
        InputError: an argument is out of range, there are too few images, or files or boxes cannot be used.
    """

    pixel_mean, pixel_std = MEAN, STD
    image_example = "image.resize({size}, Image.Resampling.BILINEAR)"

    def __init__(
        self,
        path: str | None = None,
        images: str | None = None,
        image_size: int = 320,
        batch_size: int = 8,
        val_share: float = 0.1,
        test_share: float = 0.1,
        crop: bool = True,
        flip: bool = True,
        num_workers: NumWorkers = "auto",
        cache: bool = False,
        fold: int | None = None,
        folds: int = 5,
    ) -> None:
        super().__init__(image_size, batch_size, num_workers, cache)
        paths = {"train": path, "val": None, "test": None}
        self.use_paths(paths, "images", (val_share, test_share), (fold, folds))
        self.columns = Columns()  # checkpoints compare them
        self.save_hyperparameters()
        self.images = images
        self.crop = crop
        self.flip = flip
        self.data_source = path or ""

    def setup(self, stage: str) -> None:
        """Find, check and split images and boxes, in every process."""
        if hasattr(self, "train_set"):
            return
        if not self.data_source:
            raise InputError("no images given: give --data.path a COCO .json file or a table of boxes")
        self.path = local_path(self.data_source)
        path = annotation_file(self.path)
        folder = local_path(self.images) if self.images else path.parent
        names, boxes = read_boxes(path)
        beside = not self.images and self.path.is_file()
        files = local_paths(names, self.data_source) if beside else [folder / name for name in names]
        file_of = dict(zip(names, files, strict=True))
        for box in {box.file: box for box in reversed(boxes)}.values():  # the first of each image
            if not (file := file_of[box.file]).is_file():
                raise InputError(f"{box.place}: {file}: no such file; --data.images names their folder")
        self.value_ranges = check_files(files, self.value_ranges)
        found = check_boxes(boxes, file_of, path)
        labels = [label for own in found.values() for _, label in own]
        if not labels:
            raise InputError(f"{path} has no boxes")
        numbers = self.find_labels(labels, str(path))
        images = [(file, _tensors(found.get(name, []), numbers)) for name, file in file_of.items()]
        unlabelled = [LabelledFile(str(file), file, label="") for file in files]  # images have no class
        split = split_files(unlabelled, images, content_keys(files), self.shares, "images", self.fold)
        parts = {part: [image for image, _ in own] for part, own in split.items()}
        classes = {part: [one for _, (_, targets) in own for one in targets.tolist()] for part, own in parts.items()}
        if empty := [part for part, own in classes.items() if not own]:
            raise InputError(f"{path} has {len(names):,} images, too few for a {PARTS[empty[0]]} part with boxes")
        sizes = ", ".join(f"{len(own):,} {part}" for part, own in parts.items())
        rank_zero_info(f"{self.num_classes} classes, {len(labels):,} boxes, {sizes} images of {path}")
        report_classes(self.labels, classes)
        self.report_changes({part: [""] * len(own) for part, own in parts.items()}, self.data_source, "images")
        count = max(len(boxes) for _, (boxes, _) in images)
        cropped = Shrink(self.image_size, SMALLEST_CROP) if self.crop else self.shrink
        self.train_set, self.val_set, self.test_set = (
            BoxFiles(
                [file for file, _ in own],
                [targets for _, targets in own],
                self.transform(part),
                cropped if part == "train" else self.shrink,
                self.value_ranges,
                count,
            )
            for part, own in parts.items()
        )

    def prepare(self, inputs: Sequence[Image.Image]) -> Tensor:
        """The pixels of images as in validation, not normalised, (B, 3, S, S) uint8."""
        transform = self.transform("val")
        return torch.stack([transform(rgb(image, self.shrink)) for image in inputs])

    def transform(self, part: str) -> Any:
        """The transform of a part (`train`, `val` or `test`) of images, and of their boxes."""
        first: list[Any] = []
        if part == "train":
            first += [v2.RandomIoUCrop()] * self.crop + [v2.RandomHorizontalFlip()] * self.flip
            first += [v2.SanitizeBoundingBoxes()] * self.crop
        return v2.Compose([*first, v2.Resize((self.image_size, self.image_size)), v2.PILToTensor()])


def _tensors(boxes: list[tuple[list[float], str]], numbers: dict[str, int]) -> tuple[Tensor, Tensor]:
    corners = torch.tensor([corners for corners, _ in boxes]).reshape(-1, 4)
    return corners, torch.tensor([numbers[label] for _, label in boxes], dtype=torch.int64)
