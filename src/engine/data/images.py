"""Reads image files of any mode."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

UNREADABLE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)


def image_files(folder: Path, skipped: Counter[str] | None = None) -> Iterator[Path]:
    """The image files in a folder and its subfolders, sorted; hidden ones, and macOS's `__MACOSX`, are left out.

    Args:
        folder: where to look.
        skipped: counts the other files by what they end in, and links that lead nowhere.
    """
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        for name in sorted(name for name in names if not is_hidden(name)):
            file = Path(parent) / name
            if name.lower().endswith(IMG_EXTENSIONS) and file.is_file():
                yield file
            elif skipped is not None:
                skipped[file.suffix.lower() or name if file.is_file() else "broken links"] += 1


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not meant for people."""
    return name.startswith(".") or name == "__MACOSX"


def read_image(source: Any) -> Image.Image:
    """Read an image as 8-bit RGB, RGBA or grey, rotated as its EXIF data says.

    Args:
        source: a path or an open file.

    Raises:
        OSError, SyntaxError, ValueError, UnidentifiedImageError, DecompressionBombError: `UNREADABLE`, not an image.
    """
    with Image.open(source) as opened:
        image = to_8_bits(ImageOps.exif_transpose(opened))
        if image.mode not in ("L", "RGB", "RGBA"):
            has_alpha = image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info
            image = image.convert("RGBA" if has_alpha else "L" if image.mode in ("1", "F") else "RGB")
        image.load()
        return image


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a 16-bit grey image to 8 bits, as PIL would clip it to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.float32) / 257).clip(0, 255).astype(np.uint8))


def flatten(image: Image.Image) -> Image.Image:
    """Replace transparency by black or white, whichever contrasts with the drawing."""
    if image.mode != "RGBA":
        return image
    ink = np.asarray(image.convert("LA"), dtype=np.float32)  # (H, W, 2)
    alpha = ink[..., 1]
    is_light = (ink[..., 0] * alpha).sum() > 127 * alpha.sum()
    background = Image.new("RGBA", image.size, "black" if is_light else "white")
    return Image.alpha_composite(background, image).convert("RGB")
