"""Finds image files, and reads those of any mode and depth."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import EpsImagePlugin, ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin

from src.engine.data.files import file_error
from src.engine.data.loading import announce

UNREADABLE = (Exception,)  # damaged files make PIL raise errors of almost any kind
SIZE = "original size"  # in the info of an image
CROP_RATIO = 3 / 4  # of a random crop's sides: at least this, at most its inverse
WHITES = (255, 1023, 4095, 16383, 65535)  # largest values of 8, 10, 12, 14 and 16 bits

EpsImagePlugin.gs_binary = False  # never run PostScript, a program under any file name

Ranges = dict[str, tuple[float, float]]
"""The values that become black and white, by the kind of a deep image: `integer` or `float`."""


def image_error(path: Path, problem: Exception) -> str:
    """Why an image cannot be used, in training and prediction alike."""
    return file_error(path, problem, "not a readable image: ")


class DeepImage(NamedTuple):
    """The values (H, W) of an image that is signed or has more than 8 bits, their kind and their range."""

    values: Any
    kind: str
    low: float
    high: float
    is_negative: bool  # 0 is white


def deep_image(opened: ImageFile.ImageFile) -> DeepImage | None:
    """The values of an image of more than 8 bits, floats or signed integers; None for all others."""
    opened.filename = ""  # else PIL 13 maps an uncompressed TIFF into memory with width and height exchanged
    tags: Mapping[int, Any] = getattr(opened, "tag_v2", {})
    form = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]  # 1: unsigned, 2: signed
    is_signed_byte = opened.mode == "L" and form == 2
    if opened.mode[0] not in "IF" and not is_signed_byte:
        return None
    _read_exif(opened)
    values = np.asarray(ImageOps.exif_transpose(opened))
    if is_signed_byte:
        values = values.view(np.int8)
    elif values.dtype == np.int32 and tags and form == 1:  # PIL has no mode for them
        values = values.view(np.uint32)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if opened.format == "PPM" and opened.mode == "I":  # PIL has scaled it
        low, high = 0.0, 65535.0
    for smallest, largest in ((280, 281), (340, 341)):  # the range that a TIFF says
        low, high = (float(np.min(tags.get(tag, value))) for tag, value in ((smallest, low), (largest, high)))
    return DeepImage(values, "float" if opened.mode == "F" else "integer", low, high, tags.get(262) == 0)


def usual_range(kind: str, low: float, high: float) -> tuple[float, float]:
    """The values that become black and white, for an image with values from `low` to `high`.

    Without negative values: 0, and the smallest of 1 and 255 (floats) or of 255 to 65535 (integers) that is at least
    `high`, else `high`. With negative values: -1 and 1 for floats in [-1, 1], else `low` and `high`.
    """
    if kind == "float" and -1 <= low < 0 and high <= 1:
        return -1.0, 1.0
    if low < 0:
        return low, max(high, low + 1)
    whites = (1, 255) if kind == "float" else WHITES
    return 0.0, float(next((white for white in whites if high <= white), high))


class Shrink(NamedTuple):
    """Shrinks large images by an integer factor, but never below the network's input size; JPEGs while decoding.

    Args:
        size: S, height and width of the network's input in pixels; the shorter side keeps at least as many.
        crop: smallest share of the area that a random crop keeps; each side of any crop keeps at least S pixels. 1:
            no cropping.
    """

    size: int
    crop: float = 1.0

    def factor(self, width: int, height: int) -> int:
        """How many times smaller an image may become."""
        side: float = min(width, height)
        if self.crop < 1:
            side = min(side, math.sqrt(self.crop * width * height * CROP_RATIO))
        return max(1, int(side / self.size))

    def draft(self, opened: Image.Image) -> None:
        """Let the decoder of a JPEG that is not loaded yet give it half, a quarter or an eighth of its size."""
        factor = self.factor(*opened.size)
        if factor > 1:
            opened.draft(None, (opened.width // factor, opened.height // factor))

    def __call__(self, image: Image.Image) -> Image.Image:
        """An image, smaller if it may be."""
        self.draft(image)
        factor = self.factor(*image.size)
        return image.reduce(factor) if factor > 1 else image


def reader(data: Any) -> Callable[[Any], Any]:
    """A DataModule's `read_file`, else `read_image` with its `value_ranges` and `shrink`, if it has them."""
    if hasattr(data, "read_file"):
        return data.read_file
    return partial(read_image, ranges=getattr(data, "value_ranges", None), shrink=getattr(data, "shrink", None))


def read_image(source: Any, ranges: Ranges | None = None, shrink: Shrink | None = None) -> Image.Image:
    """Read an image as 8-bit RGB, RGBA or grey, rotated as its EXIF data says.

    Args:
        source: a path or an open file.
        ranges: the values that become black and white in deep images, by kind, such as {"integer": (0, 4095)}; also
            of "float"; default: by the values of the image, with a message.
        shrink: makes large images smaller; default: none.

    Raises:
        Exception: of any kind, if it is not an image.
    """
    with Image.open(source) as opened:
        size = upright_size(opened)
        image = _eight_bits(opened, ranges, shrink)
        image.load()
    image = shrink(image) if shrink else image
    image.info[SIZE] = size
    return image


def _eight_bits(opened: ImageFile.ImageFile, ranges: Ranges | None, shrink: Shrink | None) -> Image.Image:
    if deep := deep_image(opened):
        if ranges is None:
            _announce_own_range()
        low, high = (ranges or {}).get(deep.kind) or usual_range(*deep[1:4])
        values = np.nan_to_num(deep.values.astype(np.float64), nan=low).clip(low, high)
        pixels = ((values - low) * (255 / (high - low))).round().astype(np.uint8)
        return Image.fromarray(255 - pixels if deep.is_negative else pixels)
    if shrink:
        shrink.draft(opened)
    ImageOps.exif_transpose(opened, in_place=True)
    if opened.mode in ("LA", "PA", "La", "RGBa") or "transparency" in opened.info:
        return opened.convert("LA" if opened.mode == "La" else opened.mode).convert("RGBA")
    if opened.mode not in ("L", "RGB", "RGBA"):
        return opened.convert("L" if opened.mode == "1" else "RGB")
    return opened


@cache  # once
def _announce_own_range() -> None:
    announce(
        "each image of more than 8 bits is scaled by its own values; for one range of all, give read_image ranges, such"
        ' as {"integer": (0, 4095)}, and the DataModule the same as value_ranges, for prediction'
    )


def _read_exif(opened: Image.Image) -> None:
    """Read an image's EXIF data as far as possible, so that damage in it is no error later."""
    if opened.format == "PNG" and "exif" not in opened.info:
        opened.load()  # its EXIF data may follow the pixels, whose damage is an error
    with suppress(Exception):
        opened.getexif()  # later calls return what this one has read
    for name in ("exif", "Raw profile type exif"):
        opened.info.pop(name, None)  # else `exif_transpose` writes it anew, which damage can prevent


def upright_size(opened: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image, rotated as its EXIF data says."""
    _read_exif(opened)
    # Only 5 to 8 swap the sides; PIL has already swapped those of a TIFF.
    is_turned = opened.getexif().get(ExifTags.Base.Orientation) in range(5, 9) and opened.format != "TIFF"
    return (opened.height, opened.width) if is_turned else opened.size


def original_size(image: Image.Image) -> tuple[int, int]:
    """The original width and height of an image that `read_image` may have shrunk."""
    return image.info.get(SIZE, image.size)


def read_mask(path: Path) -> Image.Image:
    """A mask as an image of class numbers (mode I): grey values as they are, a palette's as its numbers."""
    with Image.open(path) as opened:
        _read_exif(opened)
        values = np.asarray(ImageOps.exif_transpose(opened))
    if values.ndim != 2:
        raise ValueError(f"it has {values.shape[2]} channels; a mask has one, of class numbers")
    return Image.fromarray(values.astype(np.int32))


def flatten(image: Image.Image) -> Image.Image:
    """Replace transparency by black or white, whichever contrasts with the drawing."""
    if image.mode != "RGBA":
        return image
    grey, alpha = np.asarray(image.convert("L")), np.asarray(image.getchannel("A"))  # (H, W) each
    # In 64-bit integers, without a copy of them: an image may have many pixels.
    is_light = np.einsum("ij,ij->", grey, alpha, dtype=np.int64) > 127 * alpha.sum(dtype=np.int64)
    background = Image.new("RGBA", image.size, "black" if is_light else "white")
    return Image.alpha_composite(background, image).convert("RGB")
