"""Merges newer files of this template into a project that was made of it."""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from src.engine.new.project import OWN
from src.engine.new.template import commit, commit_of, git
from src.engine.system.errors import InputError

# Up to the commits that have this file, all projects had what these parts do, so an update adds them.
OLD_FILE, NEW_PARTS = "src/engine/training/monitor_choice.py", ("hparams", "monitors")


def update(root: Path, project: Path) -> int:
    """Merge what has changed since the commit that a project notes; returns the exit code, 1 with conflicts.

    git applies the difference between what the noted commit makes of the project's choice and what this clone makes of
    it. What the project has changed or deleted stays.

    Raises:
        InputError: the project notes no commit of this clone, or has changes that are not committed.
    """
    noted = _noted(project)
    status = git(project, "status", "--porcelain", check=False)
    if status.returncode:
        raise InputError(f"--update {project}: git does not know this folder, so nothing could be undone: commit first")
    if status.stdout.strip():
        raise InputError(f"--update {project}: it has changes that are not committed; commit them first")
    if noted["commit"] == "unknown":
        raise InputError(
            f"--update {project}: it was made of a copy without history: write the commit that it was made of into its"
            " pyproject.toml, below [tool.lightning-starter]"
        )
    if git(root, "cat-file", "-e", f"{noted['commit']}^{{commit}}", check=False).returncode:
        raise InputError(
            f"--update {project}: {root} has no commit {noted['commit']}, which the project was made from; give a full"
            " clone (git fetch --unshallow)"
        )
    with tempfile.TemporaryDirectory() as name:
        before, after, template = (Path(name) / one for one in ("before", "after", "template"))
        git(root, "clone", "--quiet", "--shared", "--no-checkout", str(root), str(template))
        git(template, "checkout", "--quiet", noted["commit"])
        _make(template, before, noted)
        more = NEW_PARTS if (template / OLD_FILE).is_file() else ()
        _make(root, after, {**noted, "with": [*noted["with"], *more]})
        left = [f"{noted['package']}/{noted['name']}", f"tests/{noted['name']}", "configs/default.yaml", *OWN]
        files = git(before, "ls-files", "-z").stdout.split("\0")
        left += [path for path in files if path and not (project / path).exists()]  # what is deleted stays deleted
        git(after, "fetch", "--quiet", str(before), "HEAD")
        git(after, "reset", "--quiet", "--soft", "FETCH_HEAD")
        git(after, "reset", "--quiet", "FETCH_HEAD", "--", *(f":(literal){path}" for path in left))
        commit(after, "template", "lightning-starter")  # what has changed since the noted commit
        git(project, "fetch", "--quiet", str(after), "HEAD")
    inside = git(project, "rev-parse", "--show-prefix").stdout.strip()  # of a larger repository
    option = [f"-Xsubtree={inside}"] if inside else []
    picked = git(project, "cherry-pick", "--no-commit", *option, "FETCH_HEAD", check=False)
    changed = ("diff", "--name-only", "--relative")
    merged = git(project, *changed, "--cached", "--diff-filter=u").stdout.splitlines()
    conflicts = git(project, *changed, "--diff-filter=U").stdout.splitlines()
    if picked.returncode and not conflicts:
        raise InputError(f"--update {project}: git changed nothing: {' '.join(picked.stderr.split())}")
    for line in (*(f"merged    {path}" for path in merged), *(f"conflict  {path}" for path in conflicts)):
        print(line)
    if conflicts:
        print("search the conflicts for <<<<<<<, and edit them", file=sys.stderr)
    print(f"{project} is now at {commit_of(root)[:12]}; see git diff HEAD, run make test, and commit", file=sys.stderr)
    return 1 if conflicts else 0


def _noted(project: Path) -> dict[str, Any]:
    try:
        text = (project / "pyproject.toml").read_text(encoding="utf-8")
        return dict(tomllib.loads(text)["tool"]["lightning-starter"])
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f"--update {project}: not made from this template: its pyproject.toml has no [tool.lightning-starter]"
        ) from error


def _make(template: Path, folder: Path, noted: dict[str, Any]) -> None:
    """Make a project of the same choice with the `src.new` of a template."""
    words = [str(folder), "--name", noted["name"], "--package", noted["package"], "--with", ",".join(noted["with"])]
    words += ["--kind", noted["kind"]] if noted["kind"] else []
    words += [word for recipe in noted["recipes"] for word in ("--recipe", recipe)]
    # A new project could not have the name of this one, if its package is installed, or the name is taken since.
    code = (
        "import src.engine.new.creating as creating; creating._check_name = lambda *_: None;"
        "import importlib.util as util, runpy; find = util.find_spec;"
        f" util.find_spec = lambda name, *more: None if name == {noted['package']!r} else find(name, *more);"
        " runpy.run_module('src.new', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=template, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"--update: {' '.join(done.stderr.split()).removeprefix('error: ')}")
