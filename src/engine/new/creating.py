"""Make a project of your own from this template: `python -m src.new --help`."""

import argparse
import importlib.util
import keyword
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from src import ROOT
from src.engine.cli.command import command_parser, new_output, parse_words, require
from src.engine.new.project import ALWAYS, DEFAULT, Choice, Project, default_parts, kinds, parts, recipes
from src.engine.new.pyproject import distributions
from src.engine.new.template import Template, commit, git, uncommitted
from src.engine.new.updating import update
from src.engine.system.errors import InputError

# Names that a project's own folder or package cannot have: they are taken in every project, or git ignores them.
TAKEN = {"engine", "tasks", "train", "new", "tests", "configs", "src", "data", "logs", "build", "docs", "scripts"}
USUAL = "default"  # stands for the default parts in --with
# A new name changes the length of lines and the order of imports, and so does what is left out.
# Formatted first, because ruff does not order imports in a line of several statements.
RUFF = (("format",), ("check", "--select=I", "--fix", "--exit-zero"), ("format",))


def new(args: list[str]) -> int | None:
    """Write a new project, list what it would have, or update one.

    Raises:
        InputError: an option is wrong, or the project cannot be written.
    """
    options = _parse(args)
    if not options.dry_run:
        require("src.new", "dev", "ruff")  # which formats what is written
    if options.update:
        return update(ROOT, Path(options.update).expanduser().absolute(), _words(options.parts), options.recipe)
    if not args and sys.stdin.isatty():
        try:
            _ask(options)
        except EOFError as error:
            raise InputError("a question has no answer; nothing is written") from error
    folder, choice = _choice(options)
    project = Project(ROOT, choice)
    if choice.kind and project.has(choice.name):
        raise InputError(_taken("--name", choice.name, "--name tumours"))
    files = project.files()
    if options.dry_run:
        _list(files)
    else:
        reason = uncommitted(ROOT)  # before the project is one more file here
        write(folder, files, choice.author)
        lines = sum(content.count(b"\n") for path, content in files.items() if path.startswith(f"{choice.package}/"))
        print(f"written {folder}: {len(files)} files, {lines:,} lines in {choice.package}/")
        print(f"next: cd {shlex.quote(os.path.relpath(folder))} && make train{project.make_arguments}")
        if reason:
            print(f"this project cannot take updates: {reason}", file=sys.stderr)
    return None


def write(folder: Path, files: dict[str, bytes], author: str) -> None:
    """Write a repository with a first commit, completely or not at all; raises InputError if it cannot."""
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        temporary.mkdir()
        try:
            for path, content in files.items():
                file = temporary / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                if content.startswith(b"#!"):
                    file.chmod(file.stat().st_mode | 0o111)
            for words in RUFF:
                ruff = [sys.executable, "-m", "ruff", *words, "--quiet", "."]
                subprocess.run(ruff, cwd=temporary, check=True, capture_output=True, text=True)
            shutil.rmtree(temporary / ".ruff_cache", ignore_errors=True)
            git(temporary, "init", "--quiet", "--initial-branch=main")
            git(temporary, "add", "--all", "--force")  # whatever git ignores everywhere on this machine
            commit(temporary, "New project from lightning-starter", author)
            if folder.exists():  # made meanwhile
                raise FileExistsError(17, "it exists", str(folder))
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error.stderr).split())
        raise InputError(f"{folder} cannot be written: {reason}; nothing is left of it") from error


def _choice(options: argparse.Namespace) -> tuple[Path, Choice]:
    """Folder and content of the project; raises InputError if the folder or a name cannot be used."""
    if not options.folder:
        raise InputError("the folder is missing: give one, as in python -m src.new ../tumours --kind classification")
    if not options.kind and not options.recipe:
        known = f"--kind {' or '.join(kinds(ROOT))}, or --recipe with one of {', '.join(recipes(Template(ROOT)))}"
        raise InputError(f"{options.folder}: nothing is chosen for this project: give {known}")
    folder = new_output("folder", options.folder)
    name = options.name or folder.name
    _check_name("--name" if options.name else f"{options.folder}: the name", name, "--name tumours")
    if options.package != "src":
        _check_name("--package", options.package, "--package tumours")
        if importlib.util.find_spec(options.package) is not None:
            raise InputError(f"--package {options.package}: an installed package has that name; give another")
    words = _words(options.parts or [USUAL])
    if USUAL in words:
        kind = kinds(ROOT).get(options.kind)
        words += kind["with"] if kind else default_parts(ROOT, options.recipe)
    chosen = sorted({word for word in words if word not in (*ALWAYS, USUAL)})
    author = options.author or git(ROOT, "config", "user.name", check=False).stdout.strip() or f"the {name} authors"
    options.recipe = list(dict.fromkeys(options.recipe))
    return folder, Choice(name, options.kind, options.recipe, chosen, options.package, author, options.license)


def _words(parts: list[str] | None) -> list[str]:
    return [word.strip() for one in parts or () for word in one.split(",") if word.strip()]


def _check_name(option: str, name: str, example: str) -> None:
    if not re.fullmatch("[a-z]([a-z0-9_]*[a-z0-9])?", name) or keyword.iskeyword(name):
        raise InputError(f"{option} {name} is not the name of a module: give one such as {example}")
    if name in distributions((ROOT / "pyproject.toml").read_text(encoding="utf-8")):
        raise InputError(f"{option} {name}: a package that the project may need has that name; give another")
    if name in TAKEN:
        raise InputError(_taken(option, name, example))


def _taken(option: str, name: str, example: str) -> str:
    return f"{option} {name} is already used in the project: give another, as in {example}"


def _list(files: dict[str, bytes]) -> None:
    """Print each file with its lines, and the sum of each folder."""
    sums = Counter[str]()
    for path in sorted(files):
        count = files[path].count(b"\n")
        print(f"{count:6,}  {path}")
        sums[path.split("/")[0] if "/" in path else "."] += count
    print("", *(f"{count:6,}  lines in {folder}" for folder, count in sums.items()), sep="\n")


def _ask(options: argparse.Namespace) -> None:
    """Ask for folder, content and parts on a terminal, with the lines and packages that each costs."""
    template = Template(ROOT)
    options.folder = input("Folder of the new project, such as ../tumours: ").strip()
    if not options.folder:
        raise InputError("no folder is given; nothing is written")
    name = new_output("folder", options.folder).name
    _check_name(f"{options.folder}: the name", name, "../tumours, or give options, such as --name")
    print("\nWhat it starts with, and the lines of its src/:")
    starts = {f"{name}: {about['about']}": Choice("example", name, parts=[]) for name, about in kinds(ROOT).items()}
    for name, path in recipes(template).items():
        starts[f"{name}: {path}"] = Choice("example", recipes=[name], parts=[])
    projects = [Project(ROOT, choice) for choice in starts.values()]
    least = set.intersection(*({*one.requirements()} for one in projects))
    for number, (shown, project) in enumerate(zip(starts, projects, strict=True), start=1):
        print(f"{number:3}  {project.lines():6,} lines  {shown}{_needs(project, least)}")
    answer = input("Number: ").strip()
    if not answer.isdigit() or not 1 <= int(answer) <= len(starts):
        raise InputError(f"{answer or 'no number'}: give 1 to {len(starts)}")
    choice = [*starts.values()][int(answer) - 1]
    options.kind, options.recipe = choice.kind, choice.recipes
    print("\nWhat it can do besides training, and what each adds:")
    base = Project(ROOT, choice)
    for word in (word for word in parts(template) if word not in ALWAYS):
        more = Project(ROOT, replace(choice, parts=[word]))
        if more.kept != base.kept:
            print(f"  {more.lines() - base.lines():6,} lines  {word}{_needs(more, base.requirements())}")
    answer = input("Names separated by commas, or Enter for the default: ")
    options.parts = [answer] if answer.strip() else None


def _needs(project: Project, known: set[str]) -> str:
    packages = ", ".join(sorted(project.requirements() - known))
    return f" (needs {packages})" if packages else ""


def _parse(args: list[str]) -> argparse.Namespace:
    parser = command_parser("src.new", "Make a project of your own: what you choose of this template, nothing else.")
    parser.add_argument("folder", nargs="?", help="folder to make; without it, on a terminal, questions are asked")
    parser.add_argument("--kind", help=f"kind of task: {', '.join(kinds(ROOT))}")
    parser.add_argument("--recipe", action="append", default=[], help="recipe of this template, by name; repeatable")
    usual = f"default: the kind's own, or {','.join(DEFAULT)}; language models: generate in place of predict"
    words = "commands and parts besides train, separated by commas; default,serve: those of the default, and serve"
    parser.add_argument("--with", dest="parts", action="append", help=f"{words}; {usual}")
    parser.add_argument("--name", help="name of the project and of the folder of its code (default: the folder's)")
    parser.add_argument("--package", default="src", help="import name in place of src, as in python -m NAME.train")
    parser.add_argument("--author", default="", help="author, for licence and citation (default: git's user.name)")
    parser.add_argument("--license", default="MIT", help="licence of your code (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="list the files with their lines and write nothing")
    parser.add_argument("--update", metavar="PROJECT", help="merge newer files into a project made by this command")
    options = parse_words(parser, args)
    unset = parse_words(parser, [])
    taken = ("update", "debug", "parts", "recipe")
    others = [name for name, value in vars(options).items() if name not in taken and value != getattr(unset, name)]
    if options.update and others:
        raise InputError(f"--update takes --with and --recipe only, was given {', '.join(others)} too")
    return options
