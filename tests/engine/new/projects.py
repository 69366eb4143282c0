"""New projects for tests."""

import shutil
import sys
from pathlib import Path

from src.engine.new.creating import new


def make(folder: Path, *words: str) -> Path:
    """A new project in a folder."""
    assert new([str(folder), *words]) is None
    return folder


def environment(project: Path) -> None:
    """Give a project the environment of this process, as if its Makefile had installed it."""
    (project / ".venv").mkdir()
    for name in ("bin", "lib"):
        (project / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", project / ".venv")
    for name in (".installed", ".installed-dev"):
        (project / ".venv" / name).touch()
