"""What run folders say: settings, final metrics and curves. Torch is not needed."""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from src.engine.runs.checkpoint import configuration_files
from src.engine.system.classes import flat
from src.engine.system.errors import InputError

MAX_POINTS = 2000  # of a curve

Curve = tuple[list[int], list[float]]  # steps and values


@dataclass
class PastRun:
    """A run folder as it is on the disk.

    `problem` says in one line why a run is unfinished or broken; a broken one has no settings.
    """

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def name(self) -> str:
        """The path, relative to the working directory if it is in it."""
        return os.path.relpath(self.folder) if self.folder.is_relative_to(Path.cwd()) else str(self.folder)


def read_run(folder: Path) -> PastRun:
    """Read the newest configuration and the metrics of a run."""
    run = PastRun(folder.absolute())
    tree, problem = _read([folder / "config.yaml", *configuration_files(folder)][-1], yaml.safe_load)
    if not problem:
        run.settings = flat(tree)
        run.metrics, problem = _read(folder / "metrics.json", json.loads)
    if problem == "it has no metrics.json":
        run.problem = "unfinished: it has no metrics yet"
    elif problem:
        run.problem = f"broken: {problem}"
    elif "total_seconds" not in run.metrics:
        run.problem = "unfinished: its metrics are those of its last validation"
    return run


def _read(path: Path, parse: Callable[[str], Any]) -> tuple[dict[str, Any], str]:
    """The content of a file, and what is wrong with it ("" if nothing)."""
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, f"it has no {path.name}"
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:100]
        return {}, f"{path.name} cannot be read ({reason})"
    return (found, "") if found and isinstance(found, dict) else ({}, f"{path.name} holds no names and values")


def runs_in(folder: Path) -> Iterator[Path]:
    """The run folders, `version_N`, in a folder and its subfolders, sorted."""
    for path in sorted(
        folder.iterdir(), key=lambda path: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", path.name)]
    ):
        if path.is_dir() and not path.is_symlink():
            if re.fullmatch(r"version_\d+", path.name):
                yield path
            else:
                yield from runs_in(path)


def curves(folder: Path) -> dict[str, Curve]:
    """The curves that a run has logged to TensorBoard, by name."""
    from tensorboard.backend.event_processing import event_accumulator  # lazy import: keeps --help fast

    events = event_accumulator.EventAccumulator(
        str(folder), size_guidance={"scalars": MAX_POINTS, "tensors": 1, "images": 1}
    )
    events.Reload()
    found = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    return {name: ([one.step for one in points], [one.value for one in points]) for name, points in found.items()}


def find_folder(given: str) -> Path:
    """A folder that a user names.

    Raises:
        InputError: there is none.
    """
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise InputError(f"{given}: no such folder; give one such as logs/default/version_0")
    return folder
