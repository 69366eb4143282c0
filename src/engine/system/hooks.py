"""Finds the parts of the engine that are there; to remove one, delete its file in `parts/` or `tensorboard/`."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

FOLDERS = ("parts", "tensorboard")


def hooks(name: str) -> list[Any]:
    """What all parts define under a name, such as the function `callbacks`; empty if none does."""
    return [getattr(part, name) for part in _parts() if hasattr(part, name)]


def bare_flags() -> list[str]:
    """The options of all parts that take no value."""
    return [flag for flags in hooks("BARE_FLAGS") for flag in flags]


@cache
def _parts() -> list[Any]:
    package, folder = __name__.removesuffix(".system.hooks"), Path(__file__).parents[1]
    found = [path for name in FOLDERS for path in sorted((folder / name).glob("[!_]*.py"))]
    return [importlib.import_module(f"{package}.{path.parent.name}.{path.stem}") for path in found]
