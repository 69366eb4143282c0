"""The files of this template, and what each of them needs."""

import ast
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from src.engine.system.errors import InputError

JUNK = (".DS_Store", "~", ".swp")  # of desktops and editors
CLASS = re.compile(r"^class ([A-Za-z]\w*)", re.MULTILINE)


class Template:
    """A clone of this template in the folder `root`, with the files of `templates/base` and `templates/kinds/<kind>`.

    Paths are relative to the clone, with slashes; those of files in `templates/` to the project.
    """

    def __init__(self, root: Path, kind: str | None = None) -> None:
        self.root = root
        self.source = {path: path for path in _listed(root) if not path.startswith("templates/")}
        self.added = set[str]()
        """Files that every project gets, and those of its kind."""
        for folder in ("templates/base", *([f"templates/kinds/{kind}"] if kind else [])):
            added = {path.removeprefix(f"{folder}/"): path for path in _listed(root) if path.startswith(f"{folder}/")}
            self.source |= added
            self.added |= added.keys() - {"kind.yaml"}
        code = [path for path in sorted(self.source) if path.startswith("src/") and path.endswith(".py")]
        self.classes = {name: path for path in code for name in CLASS.findall(self.text(path))}

    def text(self, path: str) -> str:
        """The content of a file, with line breaks as in Python."""
        return _read(self.root / self.source[path])

    def tree(self, path: str) -> Any:
        """The content of a YAML file, not to be changed."""
        return _parsed(self.text(path))

    def module(self, name: str) -> str | None:
        """The file of a module such as `src.engine.cli.config`, or None."""
        path = name.replace(".", "/")
        return next((one for one in (f"{path}.py", f"{path}/__init__.py") if one in self.source), None)

    def named(self, path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """All text in a Python file, docstrings and parts of f-strings included; dotted names of what it imports."""
        return _named(self.root / self.source[path], path)

    def needs(self, path: str) -> set[str]:
        """The files that a file needs: imported modules, classes named in YAML, data files beside a module."""
        if path.endswith(".yaml"):  # bare or dotted names of classes
            values = {*_values(self.tree(path))}
            files = (self.classes.get(value) or self.module(value.rpartition(".")[0]) for value in values)
            return {file for file in files if file}
        if not path.endswith(".py"):
            return set()
        texts, modules = self.named(path)
        found = {file for name in modules if (file := self.module(name))}
        found |= {file for folder in Path(path).parents if (file := f"{folder}/__init__.py") in self.source}
        for text in texts:
            named = [f"{one.replace('.', '/')}.py" for one in re.findall(r"python -m (src\.\w+)", text)]
            named += re.findall(r"scripts/[\w.]+\w", text)
            named += [] if text.endswith(".py") else [f"{Path(path).parent}/{text}"]
            named += [] if text.endswith((".py", ".yaml", ".md")) else [text]
            found |= self.source.keys() & named
        return found

    def reached(self, roots: Iterable[str]) -> set[str]:
        """The files that some files need, and these themselves."""
        found, left = set[str](), list(roots)
        while left:
            if (path := left.pop()) not in found:
                found.add(path)
                left += self.needs(path) - found
        return found

    def packages(self, paths: Iterable[str]) -> set[str]:
        """Names that Python files import of other packages; of a dotted name each part, for `torch.utils.tensorboard`.

        Text that is the name of a package counts too: it may be checked or imported by its name.
        """
        found = set[str]()
        for path in paths:
            if path.endswith(".py"):
                texts, modules = self.named(path)
                found |= {part for name in modules for part in name.split(".")} | {*filter(str.isidentifier, texts)}
        return found


def commit_of(root: Path) -> str:
    """The commit of a clone, or "unknown" for a copy without history."""
    done = git(root, "rev-parse", "HEAD", check=False)
    return "unknown" if done.returncode or not (root / ".git").exists() else done.stdout.strip()


def uncommitted(root: Path) -> str:
    """Why a project made now could not be updated later, or ""."""
    if commit_of(root) == "unknown":
        said = git(root, "rev-parse", "HEAD", check=False).stderr if (root / ".git").exists() else ""
        return f"{root}: {' '.join(said.split())}" if said else f"{root} has no history of git; use a clone"
    changes = git(root, "status", "--porcelain", "-z").stdout.split("\0")[:-1]
    if any(not (root / line[3:] / ".git").exists() for line in changes):  # a project made here is not of the clone
        return f"{root} has changes that are not committed; commit them and try again"
    return ""


def git(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run git in a folder, whatever repository the environment names; raises InputError if git is not installed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *words]
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=check)
    except FileNotFoundError as error:
        raise InputError("git is not installed, and a project starts with its history") from error


def commit(folder: Path, message: str, author: str) -> None:
    """Commit what is staged, without hooks and signatures, also where git does not know its user."""
    identity = []
    if git(folder, "config", "user.email", check=False).returncode:
        identity = ["-c", f"user.name={author}", "-c", "user.email=nobody@example.com"]
    quiet = ["-c", "core.hooksPath=/dev/null", "-c", "commit.gpgsign=false"]
    git(folder, *identity, *quiet, "commit", "--quiet", "--message", message)


@cache
def _listed(root: Path) -> tuple[str, ...]:
    """The files of a clone, or of a copy without history, that git does not ignore."""
    with TemporaryDirectory() as empty:
        history = []
        if not (root / ".git").exists():
            # If it fails, the next call fails too, and says why.
            git(root, "init", "--quiet", "--bare", "--template=", empty, check=False)
            # Only the template says what is ignored, not what the user ignores everywhere.
            history = ["-c", "core.excludesFile=/dev/null", f"--git-dir={empty}", "--work-tree=."]
        done = git(root, *history, "ls-files", "-z", "--cached", "--others", "--exclude-standard", check=False)
    if done.returncode:
        raise InputError(f"{root}: {' '.join(done.stderr.split())}")
    found = {path for path in done.stdout.split("\0") if path and not path.endswith(JUNK)}
    return tuple(sorted(path for path in found if (root / path).is_file()))


@cache
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape")  # an array beside a module is no text


@cache
def _parsed(text: str) -> Any:
    return yaml.safe_load(text)


@cache
def _named(path: Path, place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All text in a Python file, and the dotted names of what it imports; `place`: its path in the project."""
    texts: list[str] = []
    modules: list[str] = []
    for node in ast.walk(ast.parse(_read(path))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = module_of(node, place)
            modules += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return tuple(texts), tuple(modules)


def module_of(node: ast.ImportFrom, place: str) -> str:
    """The full name of the module that a file imports from, also for relative imports."""
    folders = Path(place).parent.parts
    above = folders[: len(folders) + 1 - node.level] if node.level else ()
    return ".".join([*above, *([node.module] if node.module else [])])


def _values(node: Any) -> Iterator[str]:
    """All text in a tree of dicts and lists, keys too."""
    if isinstance(node, str):
        yield node
    if isinstance(node, dict):
        node = [*node, *node.values()]
    for child in node if isinstance(node, list) else ():
        yield from _values(child)
