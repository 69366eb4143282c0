"""Recipes, overlays and class names: from files and command line to one tree of settings.

A tree is what YAML gives: dicts, lists and plain values. A class in it is a dict with `class_path` and
`init_args`; a bare name is replaced by its dotted path here, so that the rest sees dotted paths only.
"""

import importlib
import inspect
import re
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

from jsonargparse import get_loader

from src import ROOT
from src.engine.system.classes import Tree, argument_types, import_class, is_class, nearest, project_classes, short
from src.engine.system.errors import InputError

Option = tuple[str, str | None]

STAGES = ("fit", "validate", "test", "predict")
# Options of the Trainer that have a short form on the command line.
SHORT_FLAGS = ("accelerator", "devices", "num_nodes", "strategy", "precision", "max_epochs", "fast_dev_run")
# Options that may stand without a value, and so do not swallow the word behind them.
BARE_FLAGS = ("-h", "--help", "--compile", "--quiet", "--debug", "--print_config")
# Settings that hold a class, whatever the recipe.
CLASS_KEYS = ("model", "data", "optimizer", "lr_scheduler")
# Where a bare class name is looked up after this project, first hit first. Lightning's own
# ReduceLROnPlateau knows which metric to watch, torch's does not.
NAMESPACES = (
    "torch.nn",
    "lightning.pytorch.cli",
    "torch.optim",
    "torch.optim.lr_scheduler",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.profilers",
    "lightning.pytorch.plugins",
)


def split_command_line(args: list[str]) -> tuple[str | None, list[str], list[Option]]:
    """Stage (or None), configuration files, and all other options with their values, in the order given.

    Raises:
        InputError: a word is no stage and no option's value, or an option lacks its value.
    """
    stage: str | None = None
    files: list[str] = []
    options: list[Option] = []
    words = list(args)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            if word in STAGES and stage:
                raise InputError(f"{stage} {word}: only one of {', '.join(STAGES)} can run at a time")
            if word not in STAGES:
                raise InputError(f"{word}: one of {', '.join(STAGES)} may stand here{nearest(word, STAGES)}")
            stage = word
            continue
        flag, equals, text = word.partition("=")
        value: str | None = text
        if not equals:
            bare = flag in BARE_FLAGS or not words or words[0].startswith("--")
            if flag.endswith("fast_dev_run"):
                bare = bare or not re.fullmatch(r"\d+|true|false", words[0], re.IGNORECASE)
            value = None if bare else words.pop(0)
        if flag in ("-c", "--config"):
            if not value:
                raise InputError(f"{flag} needs a file, such as --config configs/default.yaml")
            files.append(value)
        elif value is None and flag not in BARE_FLAGS and not flag.endswith((".help", "fast_dev_run")):
            raise InputError(f"{flag} needs a value")
        else:
            options.append((flag, value))
    return stage, files, options


def full_option(flag: str, value: str | None) -> str:
    """An option as the parser knows it: short flags are those of the Trainer, and --fast_dev_run means true."""
    name = flag.removeprefix("--").partition(".")[0]
    full = f"--trainer.{flag.removeprefix('--')}" if name in SHORT_FLAGS else flag
    if value is None and full == "--trainer.fast_dev_run":
        value = "true"
    return full if value is None else f"{full}={value}"


def choose_recipe(loaded: list[tuple[Path, Tree]], saved: Tree) -> tuple[Tree, str, list[Tree]]:
    """The recipe, its file's name, and the overlays among some configurations.

    Of several recipes the last counts alone. With none it is the configuration `saved` in a checkpoint, where
    there is one, and else `configs/default.yaml`.
    """
    recipes = [(path, tree) for path, tree in loaded if is_recipe(tree)]
    default = ROOT / "configs" / "default.yaml"
    path, recipe = recipes[-1] if recipes else (default, saved) if is_recipe(saved) else load_config(str(default))
    for key in ("model", "data"):
        if isinstance(recipe[key], dict) and not is_class(recipe[key]):
            raise InputError(f"{path}: it has model and data and so is a recipe, but {key} has no class_path")
    return recipe, path.stem, [tree for _, tree in loaded if not is_recipe(tree)]


def load_config(given: str) -> tuple[Path, Tree]:
    """Path and tree of a YAML file, looked up in the working directory and then in the project.

    Raises:
        InputError: the file is missing, is not a YAML mapping, or names a class that does not exist.
    """
    candidates = [Path(given).expanduser(), ROOT / given]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        known = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "configs").rglob("*.yaml"))]
        named = [name for name in known if Path(name).stem == given]
        raise InputError(f"--config {given}: no such file{nearest(named[0] if named else given, known)}")
    try:
        tree = parse_value(path.read_text(encoding="utf-8"))
    except (InputError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise InputError(f"--config {given} is not YAML: {detail}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise InputError(f"--config {given} is not a configuration: it holds {type(tree).__name__}, not settings")
    if short := [name for name in SHORT_FLAGS if name in tree]:
        raise InputError(f"{given}: {short[0]} belongs under trainer, as in trainer: {{{short[0]}: ...}}")
    try:
        return path, resolve_names(tree)
    except InputError as error:
        raise InputError(f"{given}: {str(error).removeprefix('--')}") from error


def parse_value(text: str) -> Any:
    """A value as YAML reads it, where 1e-3 is a number.

    Raises:
        InputError: the text is not YAML.
    """
    try:
        return get_loader("yaml")(text)
    except Exception as error:  # the loader's own errors differ by parser
        raise InputError(str(error)) from error


def is_recipe(tree: Tree) -> bool:
    """Whether a configuration is complete: it names a model and data. Any other is an overlay on a recipe."""
    return "model" in tree and "data" in tree


def take_classes(tree: Tree, options: list[Option], dropped: list[str]) -> tuple[Tree, list[Option]]:
    """Lay the classes named on the command line over a tree; what is left are plain values.

    Raises:
        InputError: a class does not exist.
    """
    left: list[Option] = []
    for flag, value in options:
        key = flag.removeprefix("--").removesuffix(".class_path").replace(".init_args", "")
        if value is None:
            left.append((flag, value))
        elif flag.endswith(".help"):
            left.append((flag, resolve_class(value, key)))
        elif holds_class(tree, key):
            over = None if value.lower() in ("none", "null") else parse_value(value)
            if isinstance(over, str) and over.endswith((".yaml", ".yml")):
                over = load_config(over)[1]
            over = {"class_path": resolve_class(over, key)} if isinstance(over, str) else resolve_names(over, key)
            tree = merge(tree, nest(key, over), "", dropped)
        elif key in ("strategy", "trainer.strategy") and ("." in value or value.endswith("Strategy")):
            tree = merge(tree, nest("trainer.strategy", {"class_path": resolve_class(value, key)}), "", dropped)
        elif value.lower() not in ("none", "null") and (
            value in project_classes() or (key.rstrip("+") == "trainer.callbacks" and value.isidentifier())
        ):
            left.append((flag, resolve_class(value, key) if flag.startswith("--trainer.") else value))
        else:
            left.append((flag, value))
    for flag, _ in left:
        key, _, leaf = flag.removeprefix("--").partition(".")
        if key in CLASS_KEYS and leaf and not flag.endswith(".help") and not is_class(tree.get(key)):
            raise InputError(f"{flag}: there is no {key} to take it; name one too, as in --{key} CLASS")
    return tree, left


def given_names(tree: Tree, options: list[Option]) -> set[str]:
    """Dotted names, such as `model.net.width`, of all that a tree and options set."""
    names = {flag.removeprefix("--").replace(".init_args", "") for flag, _ in options}

    def walk(node: Any, key: str) -> None:
        for name, value in node.items() if isinstance(node, dict) else ():
            path = f"{key}.{name}".lstrip(".")
            names.add(path)
            walk(value, key if name == "init_args" else path)

    walk(tree, "")
    return names


def argument_flags(node: Any, flag: str = "-") -> list[str]:
    """The option of every argument of every class in a tree, such as --optimizer.lr."""
    flags: list[str] = []
    if is_class(node):
        cls = import_class(node["class_path"])
        flags += [f"{flag}.{name}" for name in inspect.signature(cls).parameters] if cls else []
        node = node.get("init_args") or {}
    for name, value in node.items() if isinstance(node, dict) else ():
        flags += argument_flags(value, f"--{name}" if flag == "-" else f"{flag}.{name}")
    return flags


def holds_class(tree: Tree, key: str) -> bool:
    """Whether the setting of this dotted name, such as `model.net`, is a class."""
    if key in CLASS_KEYS:
        return True
    node: Any = tree
    *parents, leaf = key.split(".")
    for name in parents:
        node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, dict) and "class_path" in node:
            parent = node["class_path"]
            node = {"class_path": parent, **(node.get("init_args") or {})}
    return is_class(node) and _takes_class(node["class_path"], leaf)


def nest(key: str, value: Any) -> Tree:
    """{"a": {"b": value}} of a dotted name a.b."""
    root, _, rest = key.partition(".")
    return {root: nest(rest, value) if rest else value}


def merge(base: Any, over: Any, key: str, dropped: list[str]) -> Any:
    """Lay one tree over another.

    A class that changes starts from its own defaults; what that loses is added to `dropped`, a line a class.
    `name+` appends to the list `name`.
    """
    if is_class(base) and isinstance(over, str):
        over = {"class_path": resolve_class(over, key)}
    if is_class(base) and isinstance(over, dict):
        if not is_class(over):
            if not over.keys() & {"init_args", "dict_kwargs"}:
                over = {"init_args": over}
            over = {"class_path": base["class_path"], **over}
        if import_class(over["class_path"]) is not import_class(base["class_path"]):
            if lost := base.get("init_args"):
                old, new = (path.rpartition(".")[2] for path in (base["class_path"], over["class_path"]))
                values = ", ".join(f"{name}={short(value)}" for name, value in lost.items())
                dropped.append(f"{key}: {new} starts from its own defaults; {old}'s {values} dropped")
            return over
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    merged = dict(base)
    for name, value in over.items():
        path = f"{key}.{name}" if key and name != "init_args" else key or name
        if name.endswith("+"):
            items = value if isinstance(value, list) else [value]
            merged[name[:-1]] = [*(merged.get(name[:-1]) or []), *items]
        else:
            merged[name] = merge(merged.get(name), value, path, dropped)
    return merged


def resolve_class(name: str, key: str) -> str:
    """The dotted path of a class given by bare name or dotted path: this project first, then torch and Lightning.

    Args:
        name: as the user gave it.
        key: the setting it was given for, for the message.

    Raises:
        InputError: there is no such class, or there are several in this project.
    """
    if "." in name:
        if import_class(name) is None:
            module, _, leaf = name.rpartition(".")
            near = nearest(leaf, project_classes(), prefix=f"{module}.") if _importable(module) else ""
            raise InputError(f"--{key} {name}: there is no class {leaf} in {module}{near}")
        return name
    own = project_classes().get(name, [])
    if len(own) > 1:
        raise InputError(f"--{key} {name}: several classes have that name, give one of {', '.join(own)}")
    if own:
        return own[0]
    for namespace in NAMESPACES:
        if inspect.isclass(getattr(importlib.import_module(namespace), name, None)):
            return f"{namespace}.{name}"
    library = [n for space in NAMESPACES for n, v in vars(importlib.import_module(space)).items() if inspect.isclass(v)]
    near = nearest(name, [*project_classes(), *library]).removesuffix("?")
    raise InputError(f"--{key} {name}: no class of that name{near}; package.module.Class works too")


def resolve_names(node: Any, key: str = "") -> Any:
    """A copy of a tree with every class name replaced by its dotted path."""
    if isinstance(node, list):
        return [resolve_names(item, key) for item in node]
    if isinstance(node, str) and key in CLASS_KEYS:
        node = {"class_path": node}
    if not isinstance(node, dict):
        return node
    node = dict(node)
    parent = None
    if isinstance(node.get("class_path"), str):
        parent = node["class_path"] = resolve_class(node["class_path"], key)
    for name, value in node.items():
        if name == "init_args" and parent and isinstance(value, dict):
            node[name] = {
                k: resolve_names(
                    {"class_path": v} if isinstance(v, str) and _takes_class(parent, k) else v, f"{key}.{k}"
                )
                for k, v in value.items()
            }
        else:
            node[name] = resolve_names(value, f"{key}.{name}".lstrip("."))
    return node


def _takes_class(class_path: str, argument: str) -> bool:
    """Whether an argument of a class is annotated with a class of its own, such as a network."""
    annotation = argument_types(import_class(class_path)).get(argument)
    options = [t for t in (annotation, *get_args(annotation)) if inspect.isclass(t) and get_origin(t) is None]
    # A setting that may also be a word or a number is left to jsonargparse.
    if any(issubclass(t, str | int | float | Enum | Path) for t in options):
        return False
    return any(t not in (type(None), bytes, list, dict, tuple, set) for t in options)


def _importable(module: str) -> bool:
    if not all(part.isidentifier() for part in module.split(".")):
        return False
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return False
    return True
