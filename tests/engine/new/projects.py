"""New projects for tests, and what runs in them: forked from a process that has imported the libraries."""

import contextlib
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from src.engine.new.creating import new
from tests import forked


def make(folder: Path, *words: str) -> Path:
    """A new project in a folder."""
    assert new([str(folder), *words]) is None
    return folder


def run(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m` with some words in a project, in a process that has imported the libraries."""
    output = project.with_name(f"{project.name}.txt")
    process = forked.CONTEXT.Process(target=_run, args=(str(project), words, str(output)))
    process.start()
    process.join(timeout=600)
    return subprocess.CompletedProcess(words, process.exitcode or 0, output.read_text(errors="replace"), "")


def _run(project: str, words: tuple[str, ...], output: str) -> None:
    with open(output, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        for name in [name for name in sys.modules if name.split(".")[0] in ("src", "tests")]:
            del sys.modules[name]  # those of this template
        sys.path[:] = [project, *(path for path in sys.path if path not in ("", os.getcwd()))]
        os.chdir(project)
        multiprocessing.set_start_method(None, force=True)  # workers are forks of this process, not of the template's
        os.environ |= {"PYTHONPATH": project, "REAL_INTERPRETER": "1"}
        sys.argv = [words[0], *words[1:]]
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def environment(project: Path) -> None:
    """Give a project the environment of this process, as if its Makefile had installed it."""
    (project / ".venv").mkdir()
    for name in ("bin", "lib"):
        (project / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", project / ".venv")
    for name in (".installed", ".installed-dev"):
        (project / ".venv" / name).touch()
