"""Reads image files of any mode."""

from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

UNREADABLE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)


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
