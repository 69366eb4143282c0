"""Calls the parts of the engine that are there; to remove one, delete its file in `src/engine/parts`."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

PARTS = Path(__file__).parents[1] / "parts"


def hooks(name: str) -> list[Any]:
    """What all parts define under a name; empty if none does."""
    return [getattr(part, name) for part in _parts() if hasattr(part, name)]


@cache
def _parts() -> list[Any]:
    package = __name__.replace("system.hooks", "parts")
    return [importlib.import_module(f"{package}.{path.stem}") for path in sorted(PARTS.glob("[!_]*.py"))]
