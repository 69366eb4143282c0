"""Your own images with boxes: COCO JSON, or a table."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from src.engine.data.files import is_hidden
from src.engine.data.image_reader import ImageFilesDataModule, ImageReader, check_files, rgb
from src.engine.data.images import Ranges, Shrink, image_error, upright_size
from src.engine.data.labelled_files import OPTIONS, Columns, LabelledFile, content_keys, read_all, split_files
from src.engine.data.labelled_tables import local_paths
from src.engine.data.labels import check_known, report_classes
from src.engine.data.loading import announce
from src.engine.data.split import PARTS
from src.engine.data.tables import TABLES, stream_columns, suffix_of
from src.engine.data.workers import NumWorkers
from src.engine.system.addresses import local_path
from src.engine.system.errors import InputError
from src.engine.system.randomness import derive_seed
from src.vision.image_folder import MEAN, STD, Batch

COLUMNS = ("file", "x1", "y1", "x2", "y2", "label")
MAX_LISTED = 5  # broken boxes listed in one message
EDGE = 1.0  # pixels by which a box may exceed the image, because of rounding; the box is clipped
SMALLEST_CROP = 0.09  # share of the area, of RandomIoUCrop


class Box(NamedTuple):
    """A box as read from a file: its place there, the image, x1, y1, x2 and y2 in pixels, its label, and width and
    height of the image if the file has them."""

    place: str
    file: str
    corners: tuple[Any, ...]
    label: Any
    size: tuple[Any, Any] | None = None


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
        val_path: the same for validation. Default: `val_share` of `path`.
        test_path: the same for test. Default: `test_share` of `path`.
        images: folder that the names of images in `path` are relative to; default: that of the file.
        val_images: the same for `val_path`.
        test_images: the same for `test_path`.
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
        val_path: str | None = None,
        test_path: str | None = None,
        images: str | None = None,
        val_images: str | None = None,
        test_images: str | None = None,
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
        paths = {"train": path, "val": val_path, "test": test_path}
        self.use_paths(paths, "images", (val_share, test_share), (fold, folds))
        self.columns = Columns()  # checkpoints compare them
        self.save_hyperparameters()
        self.folders = {"train": images, "val": val_images, "test": test_images}
        self.crop = crop
        self.flip = flip
        self.data_source = path or ""

    def setup(self, stage: str) -> None:
        """Find, check and split images and boxes, in every process."""
        if hasattr(self, "train_set"):
            return
        if not self.data_source:
            raise InputError("no images given: give --data.path a COCO .json file or a table of boxes")
        read = {part: find_boxes(part, path, self.folders[part]) for part, path in self.paths.items() if path}
        path = read["train"][0]
        files = [(part, file) for part, (_, own, _) in read.items() for file in own.values()]
        self.value_ranges = check_files([file for _, file in files], self.value_ranges)
        found = {part: check_boxes(boxes, own, where) for part, (where, own, boxes) in read.items()}
        labels = {part: [label for one in own.values() for _, label in one] for part, own in found.items()}
        if not labels["train"]:
            raise InputError(f"{path} has no boxes")
        check_known(labels, self.restored, lambda part, _: str(read[part][0]))
        numbers = self.find_labels([label for own in labels.values() for label in own], str(path))
        images = [
            (file, _tensors(found[part].get(name, []), numbers))
            for part, (_, own, _) in read.items()
            for name, file in own.items()
        ]
        unlabelled = [
            LabelledFile(str(file), file, label="", part=part) for part, file in files
        ]  # images have no class
        keys = content_keys([file for _, file in files])
        split = split_files(unlabelled, images, keys, self.shares, "images", self.fold)
        parts = {part: [image for image, _ in own] for part, own in split.items()}
        classes = {part: [one for _, (_, targets) in own for one in targets.tolist()] for part, own in parts.items()}
        if empty := [part for part, own in classes.items() if not own]:
            where, own, _ = read.get(empty[0], read["train"])
            raise InputError(f"{where} has {len(own):,} images, too few for a {PARTS[empty[0]]} part with boxes")
        sizes = ", ".join(f"{len(own):,} {part}" for part, own in parts.items())
        rank_zero_info(
            f"{self.num_classes} classes, {sum(map(len, labels.values())):,} boxes, {sizes} images of {path}"
        )
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


def box_targets(boxes: Tensor, classes: Tensor, count: int) -> Tensor:
    """Boxes (N, 4) and classes (N,) as targets (count, 5): class -1 in the rows after the last box."""
    rows = torch.cat([boxes.float(), classes[:, None].float()], dim=1)
    return F.pad(rows, (0, 0, 0, count - len(rows)), value=-1)


def find_boxes(part: str, given: str, images: str | None) -> tuple[Path, dict[str, Path], list[Box]]:
    """The file with the boxes of a part, its images by their names in it, and the boxes.

    Args:
        part: `train`, `val` or `test`.
        given: path or address of the file, or of its folder.
        images: folder that the names of images are relative to; None: that of the file.

    Raises:
        InputError: the file cannot be read, or an image with boxes is missing.
    """
    place = local_path(given)
    path = annotation_file(place, f"--data.{OPTIONS[part]} {given}")
    names, boxes = read_boxes(path)
    folder = local_path(images) if images else path.parent
    beside = not images and place.is_file()
    files = local_paths(names, given) if beside else [folder / name for name in names]
    file_of = dict(zip(names, files, strict=True))
    for box in {box.file: box for box in reversed(boxes)}.values():  # the first of each image
        if not (file := file_of[box.file]).is_file():
            option = OPTIONS[part].replace("path", "images")
            raise InputError(f"{box.place}: {file}: no such file; --data.{option} names their folder")
    return path, file_of, boxes


def annotation_file(path: Path, given: str) -> Path:
    """The file itself, or the only JSON file or table in a folder; InputError if it has none, or several."""
    files = sorted(one for one in path.glob("*") if not is_hidden(one.name)) if path.is_dir() else [path]
    found = [one for one in files if one.is_file() and (one.suffix.lower() == ".json" or suffix_of(one) in TABLES)]
    if len(found) != 1:
        has = f"has {', '.join(one.name for one in found)}" if found else "no JSON file or table of boxes"
        has = has if path.exists() else "no such file or folder"
        raise InputError(f"{given}: {has}; give one COCO .json file or table, or a folder with one")
    return found[0]


def read_boxes(path: Path) -> tuple[list[str], list[Box]]:
    """The names of all images, and their boxes, of a .json file in COCO's format or a table.

    In a table, a row without box and label names an image without objects. Raises InputError if the file cannot be
    read.
    """
    if path.suffix.lower() == ".json":
        return _read_coco(path)
    names, boxes = dict[str, None](), []
    rows = stream_columns(path, dict.fromkeys(COLUMNS, f"a table with {', '.join(COLUMNS)}"))
    for number, (file, *corners, label) in enumerate(rows, start=1):
        place, name = f"{path}, row {number}", str(file or "")
        if not name.strip():
            raise InputError(f"{place}: column file is empty; fill it or remove the row")
        names[name] = None  # in order, each once
        if any(value not in ("", None) for value in (*corners, label)):
            boxes.append(Box(place, name, tuple(corners), label))
    return list(names), boxes


def _read_coco(path: Path) -> tuple[list[str], list[Box]]:
    where, crowds, flat, boxes = "", 0, list[str](), list[Box]()
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        images, categories = (_by_id(content, *one) for one in (("images", "file_name"), ("categories", "name")))
        for number, one in enumerate(content["annotations"], start=1):
            where = f"annotation {number}: "
            place = f"{path}, annotation {number} (id {one.get('id')})"
            for name, known in (("image_id", images), ("category_id", categories)):
                if one[name] not in known:
                    raise InputError(f"{place}: {name} {one[name]!r} is not in the file: fix or remove it")
            if not (isinstance(one["bbox"], list) and len(one["bbox"]) == 4):
                raise ValueError(f"bbox {one['bbox']!a:.60}")
            x, y, width, height = map(float, one["bbox"])
            if one.get("iscrowd"):
                crowds += 1
                continue
            if 0 in (width, height):  # COCO's own files have some
                flat.append(place)
                continue
            image, corners = images[one["image_id"]], (x, y, x + width, y + height)
            size = (image["width"], image["height"]) if {"width", "height"} <= {*image} else None
            boxes.append(Box(place, str(image["file_name"]), corners, categories[one["category_id"]]["name"], size))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} is not a COCO file of boxes ({where}{reason}): give images with id and file_name, categories with"
            " id and name, and annotations with image_id, category_id and bbox: [x, y, width, height]"
        ) from error
    if crowds:
        announce(f"{path}: {crowds:,} annotations with iscrowd are left out; boxes found there count as wrong")
    if flat:
        announce(f"{path}: {len(flat):,} boxes without width or height are left out, such as {flat[0]}")
    return list(dict.fromkeys(str(image["file_name"]) for image in images.values())), boxes


def _by_id(content: Any, kind: str, name: str) -> dict[Any, dict[str, Any]]:
    """The images or categories of a COCO file by id; `name` is what they must have."""
    found: dict[Any, dict[str, Any]] = {}
    for one in content[kind]:
        first = found.setdefault(one["id"], one)
        if first[name] != one[name]:
            raise ValueError(f"{kind} {first[name]!a} and {one[name]!a} have the same id, {one['id']!a}")
    return found


def check_boxes(boxes: list[Box], files: Mapping[str, Path], path: Path) -> dict[str, list[tuple[list[float], str]]]:
    """The boxes, as shares of width and height, and their labels by image; InputError if some cannot be used.

    Args:
        boxes: from `read_boxes`.
        files: the images by their names in `boxes`; they can be opened.
        path: the file of boxes, for messages.
    """
    names = list(dict.fromkeys(box.file for box in boxes))
    paths = [files[name] for name in names]
    sizes = dict(zip(names, read_all(paths, paths, _size, image_error), strict=True))
    found: dict[str, list[tuple[list[float], str]]] = {}
    broken: list[str] = []
    for box in boxes:
        try:
            shares = _shares(box, *sizes[box.file])
        except ValueError as error:
            broken.append(f"{box.place.removeprefix(f'{path}, ')} of {box.file}: {error}")
        else:
            found.setdefault(box.file, []).append((shares, str(box.label).strip()))
    if broken:
        more = f"; and {len(broken) - MAX_LISTED:,} more" if len(broken) > MAX_LISTED else ""
        form = " (bbox is [x, y, width, height], shown as corners)" if path.suffix.lower() == ".json" else ""
        raise InputError(
            f"{path}: {len(broken):,} of {len(boxes):,} boxes cannot be used{form}:"
            f" {'; '.join(broken[:MAX_LISTED])}{more}"
        )
    if resized := {box.file: box.size for box in boxes if box.size and box.size != sizes[box.file]}:
        name, said = next(iter(resized.items()))
        example = "{} is {} x {}, in this file {} x {}".format(name, *sizes[name], *said)
        announce(
            f"{path}: {len(resized):,} images have another size, such as {example}; boxes are read as pixels of the"
            " images, rotated as EXIF says"
        )
    return found


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return upright_size(image)


def _shares(box: Box, width: int, height: int) -> list[float]:
    """The corners of a box as shares of its image's width and height; ValueError says what is wrong with the box."""
    shown = ", ".join(f"{name} {value}" for name, value in zip(COLUMNS[1:5], box.corners, strict=True))
    try:
        x1, y1, x2, y2 = corners = [float(value) for value in box.corners]
    except (TypeError, ValueError):
        raise ValueError(f"{shown}: not numbers") from None
    if not all(map(math.isfinite, corners)):
        raise ValueError(f"{shown}: not finite numbers")
    if box.label is None or not str(box.label).strip():
        raise ValueError("it has no label")
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"{shown}: it has no area between left and right, or upper and lower edge")
    is_cut = min(x1, y1) < -EDGE or x2 > width + EDGE or y2 > height + EDGE
    if is_cut or min(x2, y2) <= 0 or x1 >= width or y1 >= height:
        raise ValueError(f"{shown}: it is outside of the image, which is {width} x {height}")
    if max(corners) <= 1 and min(width, height) > 1:
        raise ValueError(f"{shown}: it is within one pixel; give pixels, not shares of width and height")
    return [min(max(value / side, 0.0), 1.0) for value, side in zip(corners, 2 * (width, height), strict=True)]
