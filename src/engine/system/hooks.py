"""Finds the parts of the engine that are there; to remove one, delete its file in `parts/` or `tensorboard/`."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

ENGINE = Path(__file__).parents[1]
FOLDERS = ("parts", "tensorboard")


def hooks(name: str) -> list[Any]:
    """What all parts define under a name, such as the function `callbacks`; empty if none does."""
    return [getattr(part, name) for part in _parts() if hasattr(part, name)]


def bare_flags() -> list[str]:
    """The options of all parts that take no value."""
    return [flag for flags in hooks("BARE_FLAGS") for flag in flags]


def find_part(name: str) -> Any:
    """The part of this name in `parts/`, or None; no other part is imported, which could take seconds."""
    path = ENGINE / "parts" / f"{name}.py"
    return _imported(path) if path.is_file() else None


@cache
def _parts() -> list[Any]:
    return [_imported(path) for name in FOLDERS for path in sorted((ENGINE / name).glob("[!_]*.py"))]


def _imported(path: Path) -> Any:
    package = __name__.removesuffix(".system.hooks")
    return importlib.import_module(f"{package}.{path.parent.name}.{path.stem}")
