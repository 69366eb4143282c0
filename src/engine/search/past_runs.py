"""What run folders say: settings, final metrics and curves. Torch is not needed."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

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
    configs = sorted(folder.glob("config.resume-*.yaml"), key=lambda path: int(re.sub(r"\D", "", path.name) or 0))
    try:
        tree = yaml.safe_load([folder / "config.yaml", *configs][-1].read_text(encoding="utf-8"))
        run.settings = flat(tree) if isinstance(tree, dict) else {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        run.problem = f"broken: {_reason(error, 'config.yaml')}"
        return run
    if not run.settings:
        run.problem = "broken: config.yaml has no settings"
        return run
    try:
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        run.problem = "unfinished: it has no metrics yet"
    except (OSError, ValueError, RecursionError) as error:
        run.problem = f"broken: {_reason(error, 'metrics.json')}"
    else:
        run.metrics = found if isinstance(found, dict) else {}
        if not isinstance(found, dict):
            run.problem = "broken: metrics.json holds no metrics"
        elif "total_seconds" not in found:
            run.problem = "unfinished: its metrics are those of its last validation"
    return run


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


def _reason(error: Exception, name: str) -> str:
    if isinstance(error, FileNotFoundError):
        return f"it has no {name}"
    return f"{name} cannot be read ({' '.join(str(getattr(error, 'strerror', None) or error).split())[:100]})"
