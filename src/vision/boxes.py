"""Reads the boxes of images from COCO JSON or a table, and checks them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from src.engine.data.files import is_hidden
from src.engine.data.images import image_error, upright_size
from src.engine.data.labelled_files import read_all
from src.engine.data.loading import announce
from src.engine.data.tables import TABLES, stream_columns, suffix_of
from src.engine.system.errors import InputError

COLUMNS = ("file", "x1", "y1", "x2", "y2", "label")
MAX_LISTED = 5  # broken boxes listed in one message
EDGE = 1.0  # pixels by which a box may exceed the image, because of rounding; the box is clipped


class Box(NamedTuple):
    """A box as read from a file: its place there, the image, x1, y1, x2 and y2 in pixels, its label, and width and
    height of the image if the file has them."""

    place: str
    file: str
    corners: tuple[Any, ...]
    label: Any
    size: tuple[Any, Any] | None = None


def box_targets(boxes: Tensor, classes: Tensor, count: int) -> Tensor:
    """Boxes (N, 4) and classes (N,) as targets (count, 5): class -1 in the rows after the last box."""
    rows = torch.cat([boxes.float(), classes[:, None].float()], dim=1)
    return F.pad(rows, (0, 0, 0, count - len(rows)), value=-1)


def annotation_file(path: Path) -> Path:
    """The file itself, or the only JSON file or table in a folder; InputError if it has none, or several."""
    files = sorted(one for one in path.glob("*") if not is_hidden(one.name)) if path.is_dir() else [path]
    found = [one for one in files if one.is_file() and (one.suffix.lower() == ".json" or suffix_of(one) in TABLES)]
    if len(found) != 1:
        has = f"has {', '.join(one.name for one in found)}" if found else "no JSON file or table of boxes"
        has = has if path.exists() else "no such file or folder"
        raise InputError(f"--data.path {path}: {has}; give one COCO .json file or table, or a folder with one")
    return found[0]


def read_boxes(path: Path) -> tuple[list[str], list[Box]]:
    """The names of all images, and their boxes.

    Args:
        path: a .json file in COCO's format, or a table with the columns file, x1, y1, x2, y2 and label; a row without
            box and label names an image without objects.

    Raises:
        InputError: the file cannot be read.
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
    where, crowds, boxes = "", 0, []
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        images, categories = (_by_id(content, *one) for one in (("images", "file_name"), ("categories", "name")))
        for number, one in enumerate(content["annotations"], start=1):
            where = f"annotation {number}: "
            place = f"{path}, annotation {number} (id {one.get('id')})"
            for name, known in (("image_id", images), ("category_id", categories)):
                if one[name] not in known:
                    raise InputError(f"{place}: {name} {one[name]} is not in the file: fix or remove it")
            if not (isinstance(one["bbox"], list) and len(one["bbox"]) == 4):
                raise ValueError(f"bbox {one['bbox']!a:.60}")
            x, y, width, height = map(float, one["bbox"])
            if one.get("iscrowd"):
                crowds += 1
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
    """The boxes, as shares of width and height, and their labels by image.

    Args:
        boxes: from `read_boxes`.
        files: the images by their names in `boxes`; they can be opened.
        path: the file of boxes, for messages.

    Raises:
        InputError: boxes are outside of their image, have no area, no label, or are no numbers.
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
