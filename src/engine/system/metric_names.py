"""Tells from the name of a metric in which stage it was logged."""

import re
from collections.abc import Iterable
from typing import Any

STAGE = re.compile(r"(?<![a-z])(train|val|test)(?:ing|id|idation)?(?![a-z])", re.IGNORECASE)


def stage_of(name: str) -> str:
    """`train`, `val` or `test` if a name such as val/loss, valid_loss or Loss/Validation says so, else ""."""
    found = STAGE.search(name)
    return found[1].lower() if found else ""


def final_names(names: Iterable[str]) -> list[str]:
    """The metrics that say how good a model is, sorted: those of training only if there are no others."""
    known = sorted(name for name in names if not name.startswith(("speed/", "lr-")))
    halves = {f"{name}_{half}" for name in known for half in ("step", "epoch")}  # Lightning logs both beside the name
    whole = [name for name in known if name not in halves]
    return [name for name in whole if stage_of(name) != "train"] or whole


def shown(value: Any) -> str:
    """A metric as it is printed: large numbers with one decimal, very small and very large ones with four digits."""
    if isinstance(value, float):
        is_usual = value == 0 or 1e-3 <= abs(value) < 1e9
        return f"{value:.{1 if abs(value) >= 1e4 else 4}f}" if is_usual else f"{value:.4g}"
    return "null" if value is None else str(value)
