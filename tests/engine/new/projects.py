"""New projects for tests."""

import shutil
import sys
from pathlib import Path

from src import ROOT
from src.engine.new.creating import new
from src.engine.new.project import recipes
from src.engine.new.template import Template

RECIPES = recipes(Template(ROOT))
OTHER = next(name for name in RECIPES if name != "default")
DOMAIN = RECIPES[OTHER].split("/")[1]


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
