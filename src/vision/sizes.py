"""Argument checks shared by the image networks."""

from torch import Tensor


def check_sizes(net: str, dropout: float = 0.0, **sizes: int) -> None:
    """Raise ValueError if a size is below 1 or dropout is not in [0, 1)."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} {value} is too small for {net}: give at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout} is out of range for {net}: give a probability of at least 0 and below 1")


def check_multiples(net: str, of: int, **sizes: int) -> None:
    """Raise ValueError if a size is no multiple of a number."""
    for name, value in sizes.items():
        if value < of or value % of:
            near = max(1, round(value / of)) * of
            raise ValueError(f"{name} {value} does not fit {net}: give a multiple of {of}, such as {near}")


def check_images(net: str, images: Tensor, *expected: int) -> None:
    """Raise ValueError if images do not have this number of channels, height and width."""
    if images.shape[1:] != expected:
        raise ValueError(f"images of shape {tuple(images.shape)} do not fit {net}: it takes (B, {str(expected)[1:]}")
