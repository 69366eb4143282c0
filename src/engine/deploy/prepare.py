"""From raw inputs to the network: the same code for training, prediction, export and serving."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from src.engine.data.loading import IGNORED
from src.engine.data.pixels import normalise, pixel_statistics
from src.engine.system.batches import labels_of
from src.engine.system.errors import GUIDE, InputError, SampleError

Inputs = tuple[Tensor, ...]

KINDS = ("image", "text", "table", "file")
NEEDED = {"table": ("columns",), "file": ("read_file", "file_suffixes")}  # other attributes of a DataModule, by kind
LARGEST = torch.finfo(torch.float32).max


def kind_of(data: Any) -> str:
    """The type of a DataModule's raw inputs: `image` (a PIL image), `text` (str), `table` (a dict of columns), `file`.

    Raises:
        InputError: the DataModule has no method `prepare`, no `input_kind`, for a table no `columns`, or for files no
            `read_file` and `file_suffixes`.
    """
    kind = getattr(data, "input_kind", None)
    if kind not in KINDS or not hasattr(data, "prepare"):
        raise InputError(
            f"{type(data).__name__} cannot prepare single inputs: give it a method prepare and input_kind ="
            f" {', '.join(map(repr, KINDS[:-1]))} or {KINDS[-1]!r}; {GUIDE}"
        )
    for needed in NEEDED.get(kind, ()):
        if not getattr(data, needed, None):
            raise InputError(f"{type(data).__name__} has no {needed}, which input_kind = {kind!r} needs; {GUIDE}")
    if unknown := [name for name in getattr(data, "category_columns", ()) if name not in getattr(data, "columns", ())]:
        raise InputError(f"{type(data).__name__}.category_columns has {unknown[0]}, which is not in columns; {GUIDE}")
    return str(kind)


def table_row(data: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table as `prepare` gets it: finite numbers, texts in `category_columns`, and NaN for missing numbers.

    An empty category is an empty text. Numbers may be missing if the DataModule says `allows_missing = True`.

    Raises:
        SampleError: a value is something else.
    """
    categories, allows_missing = getattr(data, "category_columns", ()), getattr(data, "allows_missing", False)
    found: dict[str, Any] = {}
    for name, value in row.items():
        is_missing = value is None or value == "" or value != value
        if name in categories:
            found[name] = "" if is_missing else str(value).strip()
        elif is_missing and allows_missing:
            found[name] = math.nan
        else:
            try:
                found[name] = float(value)
            except (TypeError, ValueError, OverflowError):
                found[name] = math.inf
            if not abs(found[name]) <= LARGEST:
                raise SampleError(f"column {name} is {value!r:.80}, not a finite number (largest: {LARGEST:.1e})")
    return found


def prepare_inputs(data: Any, inputs: Sequence[Any]) -> tuple[Inputs, list[str]]:
    """A batch of raw inputs as tensors, images as uint8 pixels, and a note for each input.

    Raises:
        InputError: `prepare` returns something else than tensors (B, ...), or pixels that are not uint8 (B, C, H, W).
    """
    prepared = data.prepare(list(inputs))
    tensors = (prepared,) if isinstance(prepared, Tensor) else prepared
    method = f"{type(data).__name__}.prepare"
    if not isinstance(tensors, tuple | list) or not all(isinstance(one, Tensor) for one in tensors) or not tensors:
        raise InputError(f"{method} returns {type(prepared).__name__}: give a tensor or a tuple of tensors; {GUIDE}")
    for one in tensors:
        if not one.ndim or len(one) != len(inputs):
            raise InputError(f"{method} returns shape {tuple(one.shape)} for {len(inputs)} inputs: give one row each")
    pixels, *others = tensors
    if kind_of(data) == "image" and (pixels.dtype != torch.uint8 or pixels.ndim != 4 or others):
        returned = ", ".join(f"{one.dtype} {tuple(one.shape)}" for one in tensors)
        raise InputError(
            f"{method} returns {returned}: for images give one tensor, uint8 (B, C, H, W), 0 to 255, not normalised;"
            " pixel_mean and pixel_std normalise it later"
        )
    notes = data.notes(list(inputs)) if hasattr(data, "notes") else [""] * len(inputs)
    return tuple(tensors), notes


def prepare_targets(data: Any, values: Sequence[Any], inputs: Inputs = ()) -> Tensor:
    """Turn true values in files into targets like those of the DataModule.

    Uses the DataModule's `prepare_targets`, if it has one. Otherwise masks give class numbers (B, H, W); texts of the
    DataModule's `labels` give class numbers (B,), or (B, T) for several labels in one text, -100 for an empty one; all
    else gives numbers (B, columns) float, NaN where a value is empty.

    Args:
        data: the DataModule.
        values: masks, or values of one column, or lists of the values of several columns.
        inputs: the prepared inputs.

    Raises:
        InputError: masks differ in size, or a value is neither a label nor a number. Errors of a DataModule's own
            `prepare_targets` are raised as they are.
    """
    if hasattr(data, "prepare_targets"):
        return data.prepare_targets(list(values))
    name = type(data).__name__
    if isinstance(values[0], Image.Image):
        if len({mask.size for mask in values}) > 1:
            raise InputError(f"masks differ in size: give {name} a method prepare_targets that resizes them; {GUIDE}")
        return torch.from_numpy(np.stack([np.asarray(mask) for mask in values])).long()
    numbers = {label: number for number, label in enumerate(labels_of(data))}
    if len(numbers) > 1 and not any(isinstance(value, list) for value in values):
        texts = ["" if value is None else str(value) for value in values]
        texts = [text if text in numbers else text.strip() for text in texts]  # as training reads a table
        labels = [[text] if text in numbers else text.split() for text in texts]
        if unknown := next((one for one, text in zip(values, labels, strict=True) if {*text} - numbers.keys()), None):
            known = ", ".join(list(numbers)[:20])
            raise InputError(f"the true value {unknown!r:.80} is none of the labels of {name}, {known}")
        found = [torch.tensor([numbers[label] for label in text] or [IGNORED]) for text in labels]
        if all(len(one) == 1 for one in found):
            return torch.cat(found)
        if len(inputs) == 1 and inputs[0].is_floating_point() and inputs[0].ndim < 3:  # no positions
            several = next(text for text, one in zip(texts, found, strict=True) if len(one) != 1)
            raise InputError(
                f"the true value {several!r:.80} is not one label of {name}: for several labels give one column of"
                f" 0 and 1 per label, as in {','.join(list(numbers)[:2])}"
            )
        lengths = inputs[1].sum(dim=1).tolist() if len(inputs) > 1 else map(len, found)
        if any(text and len(text) != length for text, length in zip(labels, lengths, strict=True)):
            raise InputError("a text has another number of labels than positions: give one label per position")
        padded = pad_sequence(found, batch_first=True, padding_value=IGNORED)
        more = inputs[1].shape[1] - padded.shape[1] if len(inputs) > 1 else 0  # the longest text may have no labels
        return F.pad(padded, (0, more), value=IGNORED)
    try:
        rows = [value if isinstance(value, list) else [value] for value in values]
        return torch.tensor([[_true_number(one) for one in row] for row in rows])
    except (TypeError, ValueError, OverflowError) as error:
        known = f"the labels of {name} are {', '.join(list(numbers)[:20])}" if numbers else f"{name} has no labels"
        raise InputError(f"the true values are neither labels nor numbers ({error}); {known}; {GUIDE}") from error


def _true_number(value: Any) -> float:
    number = math.nan if value in ("", None) else float(value)
    if abs(number) > LARGEST:
        raise OverflowError(f"{value!r:.80} is beyond {LARGEST:.1e}")
    return number


class Normalise(nn.Module):
    """Normalises pixels as a DataModule does: (B, C, H, W) of 0 to 255, uint8 or float -> float."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        self.mean, self.std = (nn.Buffer(one, persistent=False) for one in pixel_statistics(data))

    def forward(self, pixels: Tensor) -> Tensor:
        return normalise(pixels, self.mean, self.std)
