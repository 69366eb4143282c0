"""`--help` in one screen, and `--list`: read from source files, because importing torch takes seconds."""

import ast
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from src import ROOT
from src.engine.cli.usage import DESCRIPTION, PROGRAM, USAGE
from src.engine.system.classes import comment, project_classes, subclasses_here
from src.engine.system.errors import InputError, report

WIDTH = 100
BARE_FLAGS = ("--list",)
SETTINGS = {
    "--config FILE": "recipe or overlay, repeatable; default: configs/default.yaml",
    "--model, --model.net, --data CLASS": "task, network and data, by name; --list shows those of this project",
    "--optimizer, --lr_scheduler CLASS": "by name, such as SGD and CosineAnnealingLR",
    "--data.batch_size 64": "an argument of a class; --data.help: all of them, --data.help CLASS: those of a class",
    "--checkpoint.monitor val/acc": "metric that selects the best checkpoint; with --checkpoint.mode max",
    "--seed_everything N": "seed of the run; default: 42",
    "--lr_scheduler_interval step": "or epoch: when the schedule steps",
    "--print_config": "print the complete configuration and exit",
}


def show(args: list[str]) -> bool:
    """Print the help or the list if a command line asks for one; returns whether it does."""
    if not {"-h", "--help", "--list"} & {*args}:
        return False
    try:
        if "--list" not in args:
            print(short_help())
        elif others := [word for word in args if word != "--list"]:
            raise InputError(f"--list {others[0]}: give --list alone")
        else:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**6
            print(*(line if len(line) <= width else f"{line[: width - 4]} ..." for line in listed()), sep="\n")
    except InputError as error:
        report(error)
    return True


def short_help() -> str:
    """The options of this project, most in one line."""
    end = f"All Trainer options: {PROGRAM} --help_all. What this project has: {PROGRAM} --list"
    options = "\n".join(_table([*SETTINGS.items(), *_own_options()], WIDTH))
    return "\n\n".join([f"usage: {USAGE}", textwrap.fill(DESCRIPTION, WIDTH), options, textwrap.fill(end, WIDTH)])


def listed() -> Iterator[str]:
    """Recipes, networks, tasks, DataModules, callbacks, overlays and searches with one line each."""
    own_loaders = [name for name in _classes("LightningModule") if "train_dataloader" in _methods(name)]
    configs: dict[str, list[tuple[str, str]]] = {"Recipes": [], "Searches": [], "Overlays": []}
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        keys = {*re.findall(r"^(\w+):", text, re.MULTILINE)}
        has_data = "data" in keys or any(re.search(rf"\b{name}\b", text) for name in own_loaders)
        kind = "Recipes" if "model" in keys and has_data else "Searches" if "space" in keys else "Overlays"
        configs[kind].append((path.relative_to(ROOT).as_posix(), re.sub(r"(?<!\bal)\. .*", ".", comment(text))))
    networks = [name for name in _classes("Module", "Sequential") if _is_network(name)]
    for title, lines in (
        ("Recipes: --config FILE", configs["Recipes"]),
        ("Networks: --model.net NAME", _described(networks)),
        ("Tasks: --model NAME", _described(_classes("LightningModule"))),
        ("DataModules: --data NAME", _described(_classes("LightningDataModule"))),
        ("Callbacks: --trainer.callbacks+=NAME", _described(_classes("Callback"))),
        ("Overlays: --config FILE, added to a recipe", configs["Overlays"]),
        ("Searches: --config FILE, of the command tune", configs["Searches"]),
    ):
        if lines:
            yield from (title, *_table(lines), "")


def _own_options() -> Iterator[tuple[str, str]]:
    """The options that this project adds to those of LightningCLI, and their help."""
    engine = Path(__file__).parents[1]
    for file in (engine / "cli/cli.py", *sorted(engine.glob("parts/*.py")), *sorted(engine.glob("tensorboard/*.py"))):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
                given = {one.arg: one.value for one in node.keywords}
                if "help" in given:
                    name = ast.literal_eval(node.args[0])
                    value = "" if "action" in given else f" {name.rpartition('_')[2].lstrip('-').upper()}"
                    yield f"{name}{value}", ast.literal_eval(given["help"])


def _classes(*bases: str) -> list[str]:
    """Names of the domains' and tasks' classes that derive from one of some bases, sorted."""
    return sorted({name for base in bases for name in subclasses_here(base, "")})


@cache
def _definition(name: str) -> ast.ClassDef:
    path = ROOT.joinpath(*project_classes()[name][0].split(".")[:-1])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from error
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def _methods(name: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in _definition(name).body if isinstance(node, ast.FunctionDef)}


def _is_network(name: str) -> bool:
    """Whether a module is a network for recipes: all arguments have defaults, and it is neither a task nor a loss."""
    made = _methods(name).get("__init__")
    needed = len(made.args.args) - 1 - len(made.args.defaults) if made else 0
    return not needed and project_classes()[name][0].split(".")[1] != "tasks" and not name.endswith("Loss")


def _described(names: Iterable[str]) -> list[tuple[str, str]]:
    """Names of classes and the first paragraph of their docstrings."""
    return [(name, _line((ast.get_docstring(_definition(name)) or "").split("\n\n")[0])) for name in names]


def _line(text: str) -> str:
    return " ".join(text.split())


def _table(rows: list[tuple[str, str]], width: int = 10**6) -> list[str]:
    """The lines of a table of names and texts, the texts folded to a width."""
    start = max(len(name) for name, _ in rows) + 4
    lines = []
    for name, text in rows:
        first, *more = textwrap.wrap(text, width - start) or [""]
        lines += [f"  {name:{start - 2}}{first}".rstrip(), *(" " * start + line for line in more)]
    return lines
