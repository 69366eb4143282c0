"""Merges newer files of this template into a project that was made of it."""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.engine.new.project import OWN
from src.engine.new.template import commit_of, git, uncommitted
from src.engine.system.errors import InputError

NOTED = ("commit", "name", "kind", "recipes", "with", "package")
# Projects made from a commit with one of these files had its parts built in, so an update adds them.
BUILT_IN = {
    "src/engine/training/monitor_choice.py": ("hparams", "monitors"),
    "src/engine/cli/explain.py": ("explain", "optimizer_overrides", "overview", "trust"),
}


def update(root: Path, project: Path, parts: Sequence[str] = (), recipes: Sequence[str] = ()) -> int:
    """Merge what has changed since the commit that a project notes; returns the exit code, 1 with conflicts.

    Each file is merged by git from three versions: what the noted commit makes of the project's choice, what the clone
    in `root` makes of it, and the project's own. What the project has changed or deleted stays.

    Args:
        parts: commands and parts to add to the choice.
        recipes: recipes to add to it.

    Raises:
        InputError: the project notes no commit of this clone, or has changes that are not committed.
    """
    try:
        noted = _noted(project)
        _check(root, project, noted, recipes)
    except InputError as error:
        raise InputError(f"--update {project}: {error}") from error
    with tempfile.TemporaryDirectory() as name:
        before, after, template = (Path(name) / one for one in ("before", "after", "template"))
        git(root, "archive", "--format=zip", f"--output={template}.zip", noted["commit"])
        shutil.unpack_archive(f"{template}.zip", template)
        _make(template, before, noted)
        more = [name for file, names in BUILT_IN.items() if (template / file).is_file() for name in names]
        choice = {"with": [*noted["with"], *more, *parts], "recipes": [*noted["recipes"], *recipes]}
        _make(root, after, {**noted, **choice})
        text = (before / "pyproject.toml").read_text(encoding="utf-8")  # an archive does not know its commit
        (before / "pyproject.toml").write_text(text.replace('"unknown"', f'"{noted["commit"]}"'), encoding="utf-8")
        changed, conflicts = _merge(before, after, project, noted)
    for line in (*changed, *(f"conflict  {one}" for one in conflicts)):
        print(line)
    if any(": " not in line for line in conflicts):
        print("search the conflicts for <<<<<<<, and edit them", file=sys.stderr)
    print(f"{project} is now at {commit_of(root)[:12]}; see git status, run make test, and commit", file=sys.stderr)
    return 1 if conflicts else 0


def _noted(project: Path) -> dict[str, Any]:
    """What a project notes of its choice."""
    try:
        text = (project / "pyproject.toml").read_text(encoding="utf-8")
        noted = dict(tomllib.loads(text).get("tool", {}).get("lightning-starter", {}))
    except (OSError, tomllib.TOMLDecodeError) as error:
        way = "give the folder of a project" if isinstance(error, OSError) else "settle the conflicts in it first"
        reason = getattr(error, "strerror", error)
        raise InputError(f"its pyproject.toml cannot be read ({reason}): {way}") from error
    if missing := next((name for name in NOTED if name not in noted), None):
        made = "" if noted else "not made from this template: "
        raise InputError(f"{made}its pyproject.toml has no {missing} below [tool.lightning-starter]")
    if wrong := next((name for name in ("name", "package") if not str(noted[name]).isidentifier()), None):
        raise InputError(f"its pyproject.toml has the {wrong} {noted[wrong]}, which is not the name of a module")
    return noted


def _check(root: Path, project: Path, noted: dict[str, Any], recipes: Sequence[str]) -> None:
    """Raise InputError if an update could lose changes, or cannot tell what has changed."""
    if "default" in recipes and "default" not in noted["recipes"] and not noted["kind"]:
        raise InputError(
            "--recipe default is configs/default.yaml, and yours stays: give --recipe mnist_best, which has the same"
            f" classes, and copy {root / 'configs/default.yaml'} by another name"
        )
    status = git(project, "status", "--porcelain", "--", ".", check=False)
    if status.returncode:
        said = " ".join(status.stderr.split())
        raise InputError(f"git cannot say whether all is committed, so nothing could be undone: {said}")
    if status.stdout.strip():
        raise InputError("it has changes that are not committed; commit them first")
    if reason := uncommitted(root):
        raise InputError(reason)
    if git(root, "cat-file", "-e", f"{noted['commit']}^{{commit}}", check=False).returncode:
        raise InputError(
            f"{root} has no commit {noted['commit']}, which the project was made from: update this clone (git pull, or"
            " git fetch --unshallow if it is a shallow one); if the project was made of a copy without history, write"
            " the commit of that copy into its pyproject.toml, below [tool.lightning-starter]"
        )
    now = commit_of(root)
    if _contains(root, noted["commit"], now) and not _contains(root, now, noted["commit"]):
        raise InputError(
            f"{root} is at {now[:12]}, older than {noted['commit'][:12]}, which the project has: update this clone"
            " (git pull) first"
        )
    if not (project / noted["package"] / "engine").is_dir():
        raise InputError(
            f"it has no folder {noted['package']}/engine; if you have renamed the package, write its new name into"
            " pyproject.toml, below [tool.lightning-starter]"
        )


def _contains(root: Path, commit: str, older: str) -> bool:
    """Whether a commit is another one, or was made after it."""
    return git(root, "merge-base", "--is-ancestor", older, commit, check=False).returncode == 0


def _make(template: Path, folder: Path, noted: dict[str, Any]) -> None:
    """Make a project of the same choice with the `src.new` of a template."""
    words = [str(folder), "--name", noted["name"], "--package", noted["package"], "--with", ",".join(noted["with"])]
    words += ["--kind", noted["kind"]] if noted["kind"] else []
    words += [word for recipe in noted["recipes"] for word in ("--recipe", recipe)]
    # A new project could not have the name of this one, if its package is installed, or the name is taken since.
    code = (
        "import src.engine.new.creating as creating; creating._check_name = lambda *_: None;"
        " creating._taken = lambda _, name, __: f'what is added has files named {name} too: rename yours, write the new"
        " name into pyproject.toml, below [tool.lightning-starter], and commit';"
        "import importlib.util as util, runpy; find = util.find_spec;"
        f" util.find_spec = lambda name, *more: None if name == {noted['package']!r} else find(name, *more);"
        " runpy.run_module('src.new', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=template, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"--update: {' '.join(done.stderr.split()).removeprefix('error: ')}")


def _merge(before: Path, after: Path, project: Path, noted: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Merge all files but the user's own; returns a line for each that changed, and the paths with conflicts."""
    code = (f"{noted['package']}/{noted['name']}/", f"tests/{noted['name']}/") if noted["kind"] else ()
    own = (*code, "configs/default.yaml", ".git/", *OWN)
    files = ((side, path) for side in (before, after) for path in side.rglob("*") if path.is_file())
    paths = {path.relative_to(side).as_posix() for side, path in files}
    changed, conflicts = [], []
    # Last the file that notes the new commit: an update that is stopped before can be repeated.
    for path in sorted(paths, key=lambda path: (path == "pyproject.toml", path)):
        if path.startswith(own):
            continue
        old, new, mine = (_read(side / path) for side in (before, after, project))
        if new in (old, mine) or (mine is None and old is not None):
            continue
        if mine == old and new is None:
            (project / path).unlink()
        elif mine == old:
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(after / path, project / path)
        elif new is None:
            conflicts.append(f"{path}: it is gone from the template, and you have changed it")
        else:
            base = str(before / path) if old is not None else os.devnull  # both have added it
            labels = ("-L", "yours", "-L", "before", "-L", "template")
            done = git(project, "merge-file", *labels, str(project / path), base, str(after / path), check=False)
            if done.returncode > 127:  # else the number of conflicts
                conflicts.append(f"{path}: {' '.join(done.stderr.split())}")
            elif done.returncode:
                conflicts.append(path)
        if _read(project / path) != mine and path not in conflicts:
            word = "removed" if new is None else "added" if mine is None else "merged"
            changed.append(f"{word:9} {path}")
    return changed, conflicts


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
