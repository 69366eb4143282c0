"""Checks the labels of a data set, and reports its classes."""

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from src.engine.data.loading import announce
from src.engine.data.split import PARTS
from src.engine.system.errors import InputError

SHOWN = 20  # classes in one line
PART_NAMES = {*PARTS, "training", "valid", "validation", "testing"}
VARIATION_SELECTORS = "\ufe0e\ufe0f"


def check_labels(labels: Iterable[str], source: str, known: Sequence[str] = ()) -> None:
    """Raise InputError if labels look the same or are not valid Unicode; report those that differ only in case.

    `labels` are those of all samples; they are also compared with the `known` ones, such as those of a checkpoint.
    """
    counts = Counter(dict.fromkeys(known, 0))
    counts.update(labels)
    alike: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        if any("\ud800" <= character <= "\udfff" for character in label):
            raise InputError(f"label {label!a} of {source} is not valid Unicode: rename it")
        alike[_visible(label).lower()].append(label)
    for group in alike.values():
        shown = ", ".join(f"{label!a} ({counts[label]:,})" for label in group)
        if len({_visible(label) for label in group}) < len(group):
            raise InputError(
                f"labels {shown} of {source} look the same but differ in Unicode form, invisible characters or blanks:"
                " write them alike"
            )
        if len(group) > 1:
            announce(f"Labels {shown} of {source} differ only in case and are different classes: is this a typo?")


def check_known(parts: Mapping[str, Sequence[str]], known: Iterable[str], place: Callable[[str, int], str]) -> None:
    """Raise InputError if a label was not trained on; the message names the `place` of the first sample with it.

    `parts` are the labels of the samples of each part. The labels trained on are the `known` ones of a checkpoint;
    without a checkpoint, those of the training part.
    """
    trained = {*known} or {*parts["train"]}
    for part, labels in parts.items():
        if {*labels} <= trained:
            continue
        index = next(index for index, label in enumerate(labels) if label not in trained)
        where, shown = place(part, index), sorted(trained, key=label_order)
        check_labels(chain.from_iterable(parts.values()), where, [*known])  # it may only be written otherwise
        raise InputError(
            f"{where}: class {labels[index]!r} is not in the training data: use only {', '.join(shown[:SHOWN])}"
            f"{' ...' if len(shown) > SHOWN else ''}"
        )


def as_number(text: str) -> float:
    """A number in usual notation; raises ValueError for what only Python takes, such as 1_000 or other digits."""
    if "_" in text or not text.isascii():
        raise ValueError(f"{text!r} is not a number")
    return float(text)


def label_order(label: str) -> tuple[bool, float, str]:
    """Sort key: numbers by value, then words."""
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (True, 0.0, label) if math.isnan(number) else (False, number, label)  # "nan" is a word


def check_not_parts(names: Sequence[str], given: str) -> None:
    """Raise InputError if folders or files that should be classes have the names of a data set's parts."""
    if len(parts := [name for name in names if name.lower() in PART_NAMES]) > 1:
        raise InputError(
            f"{given}: {', '.join(parts)} are parts, not classes: give each by an option of its own: --data.path,"
            " --data.val_path and --data.test_path"
        )


def report_classes(labels: Sequence[str], parts: Mapping[str, npt.ArrayLike]) -> None:
    """Log how many samples each class has, and the classes that a part lacks; `parts` are the class numbers of each."""
    counts = {part: np.bincount(np.asarray(own, np.int64), minlength=len(labels)) for part, own in parts.items()}
    sizes = np.sum([*counts.values()], axis=0)
    shown = [f"{label} {size:,}" for label, size in zip(labels, sizes, strict=True)]
    if len(labels) > SHOWN:
        largest = [shown[number] for number in (-sizes).argsort(kind="stable")]
        shown = [*largest[:SHOWN], "...", largest[-1]]
    rank_zero_info(f"Classes: {', '.join(shown)}")
    for part, count in counts.items():
        if missing := [label for number, label in enumerate(labels) if not count[number]]:
            more = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
            announce(f"No {PARTS[part]} samples of {', '.join(missing[:SHOWN])}{more}")


def _visible(label: str) -> str:
    """A label as it looks."""
    form = unicodedata.normalize("NFC", label)
    seen = [one for one in form if unicodedata.category(one) != "Cf" and one not in VARIATION_SELECTORS]
    return " ".join("".join(seen).split())
