"""From raw inputs to the network: the same code for training, prediction, export and serving."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from src.engine.system.errors import InputError

Inputs = tuple[Tensor, ...]

KINDS = ("image", "text", "table")
GUIDE = "see docs/your_own.md"


def input_kind(data: Any) -> str:
    """The type of a DataModule's raw inputs: `image` (a PIL image), `text` (str) or `table` (a dict of columns).

    Raises:
        InputError: the DataModule has no method `prepare`, or no `input_kind`.
    """
    kind = getattr(data, "input_kind", None)
    if kind not in KINDS or not hasattr(data, "prepare"):
        raise InputError(
            f"{type(data).__name__} cannot prepare single inputs: give it a method prepare and input_kind ="
            f" {', '.join(map(repr, KINDS[:-1]))} or {KINDS[-1]!r}; {GUIDE}"
        )
    return str(kind)


def normalise(pixels: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """Pixels of 0 to 255 -> float pixels with mean 0 and standard deviation 1.

    Args:
        pixels: (..., C, H, W) uint8 or float.
        mean: (C, 1, 1) or a number for all channels, on a scale of 0 to 1.
        std: (C, 1, 1) or a number, on a scale of 0 to 1.
    """
    return (pixels.float() / 255).sub_(mean).div_(std)


def pixel_statistics(data: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a DataModule's pixels, (C, 1, 1) each; default: 0 and 1."""
    values = (getattr(data, "pixel_mean", (0.0,)), getattr(data, "pixel_std", (1.0,)))
    mean, std = (torch.tensor(one).view(-1, 1, 1) for one in values)
    return mean, std


def prepare_inputs(data: Any, inputs: Sequence[Any]) -> tuple[Inputs, list[str]]:
    """A batch of raw inputs as tensors, images as uint8 pixels, and a note for each input.

    Raises:
        InputError: `prepare` returns something else than tensors (B, ...), or pixels that are not uint8 (B, C, H, W).
    """
    prepared = data.prepare(list(inputs))
    tensors = (prepared,) if isinstance(prepared, Tensor) else prepared
    method = f"{type(data).__name__}.prepare"
    if not isinstance(tensors, tuple | list) or not all(isinstance(one, Tensor) for one in tensors):
        raise InputError(f"{method} returns {type(prepared).__name__}: give a tensor or a tuple of tensors; {GUIDE}")
    for one in tensors:
        if not one.ndim or len(one) != len(inputs):
            raise InputError(f"{method} returns shape {tuple(one.shape)} for {len(inputs)} inputs: give one row each")
    pixels = tensors[0]
    if input_kind(data) == "image" and (pixels.dtype != torch.uint8 or pixels.ndim != 4):
        raise InputError(
            f"{method} returns {pixels.dtype} pixels of shape {tuple(pixels.shape)}: give uint8 (B, C, H, W), 0 to 255,"
            " not normalised; they are normalised later by pixel_mean and pixel_std"
        )
    notes = data.notes(list(inputs)) if hasattr(data, "notes") else [""] * len(inputs)
    return tuple(tensors), notes


def prepare_targets(data: Any, values: Sequence[Any]) -> Tensor:
    """Targets as the DataModule's batches have them, from values in a file.

    Uses the DataModule's `prepare_targets`, or else looks up class names in its `labels`.

    Raises:
        InputError: a value is no label, or the DataModule has neither.
    """
    if hasattr(data, "prepare_targets"):
        targets: Tensor = data.prepare_targets(list(values))
        return targets
    labels = [str(label) for label in getattr(data, "labels", ())]
    if not labels:
        raise InputError(f"{type(data).__name__} has neither labels nor a method prepare_targets; {GUIDE}")
    if unknown := [value for value in values if str(value) not in labels]:
        raise InputError(f"{unknown[0]!r} is not a label: the model knows {', '.join(labels[:20])}")
    return torch.tensor([labels.index(str(value)) for value in values])
