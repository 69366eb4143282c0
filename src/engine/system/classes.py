"""Finds and compares classes named in a configuration, and reads its settings."""

import difflib
import importlib
import inspect
import re
import traceback
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import takewhile
from typing import Any, get_type_hints

from src import ROOT
from src.engine.system.errors import InputError, is_library

Tree = dict[str, Any]
"""A configuration as read from YAML; a class in it is a dict with `class_path` and `init_args`."""


@cache
def project_classes() -> dict[str, list[str]]:
    """Dotted paths of this project's public classes, by class name. Nothing is imported."""
    return {name: list(paths) for name, paths in _project_bases().items() if not name.startswith("_")}


@cache
def _project_bases() -> dict[str, dict[str, list[str]]]:
    """By class name, the dotted paths of this project's classes, and the last words of their bases' names."""
    classes: dict[str, dict[str, list[str]]] = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not path.is_file() or not all(part.isidentifier() for part in parts):  # a copy, or of an editor
            continue
        module = ".".join(parts).removesuffix(".__init__")
        text = path.read_text(encoding="utf-8", errors="replace")
        for name, bases in re.findall(r"^class (\w+)(?:\(([^)]*)\))?", text, re.MULTILINE):
            classes.setdefault(name, {})[f"{module}.{name}"] = re.findall(r"(\w+)\s*(?:,|$|\[)", bases)
    return classes


def subclasses_here(base: str, given: str) -> list[str]:
    """Names of the domains' public classes that derive from a base, those most like `given` first."""

    def derives(name: str) -> bool:
        bases = [one for path in _project_bases().get(name, {}).values() for one in path if one != name]
        return any(one == base or derives(one) for one in bases)

    domains = [name for name, (path, *_) in project_classes().items() if not path.startswith("src.engine.")]
    found = [name for name in domains if derives(name)]
    return sorted(found, key=lambda name: -difflib.SequenceMatcher(None, given.lower(), name.lower()).ratio())


def walk(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name, such as `model.net.width`, and value of every setting in a tree; items of a list have its name."""
    node = node.get("init_args") or {} if is_class(node) else node
    for name, value in node.items() if isinstance(node, dict) else ():
        path = f"{key}.{name}".lstrip(".")
        yield path, value
        yield from walk(value, path)
    for value in node if isinstance(node, list) else ():
        yield key, value
        yield from walk(value, key)


def present_path(path: str) -> str:
    """The dotted path of a class, where it is now if it is of this project and its module was renamed."""
    known = project_classes().get(path.rpartition(".")[2], [])
    is_moved = path.startswith("src.") and len(known) == 1 and path not in known and import_class(path) is None
    return known[0] if is_moved else path


def with_present_paths(tree: Any) -> Any:
    """A tree in which all classes have their `present_path`."""
    if isinstance(tree, list):
        return [with_present_paths(one) for one in tree]
    if not isinstance(tree, dict):
        return tree
    found = {name: with_present_paths(value) for name, value in tree.items()}
    return {**found, "class_path": present_path(tree["class_path"])} if is_class(tree) else found


def is_class(node: Any) -> bool:
    """Whether a setting names a class."""
    return isinstance(node, dict) and isinstance(node.get("class_path"), str)


def import_class(path: str) -> Any:
    """The class or function at a dotted path, or None. Raises InputError, with its line, if the module has an error."""
    module, _, name = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")):
        return None
    try:
        return getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (module == missing or module.startswith(f"{missing}.")):
            return None
        raise InputError(f"{path}: {module} cannot be imported: {_origin(error)}") from error


def _origin(error: BaseException) -> str:
    """File and line of an error outside of libraries, and the error."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)[1:]]
    own = [place for place in frames if not place[0].startswith("<") and not is_library(place[0])]
    file, line = (own or frames)[-1]
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno
    return f"{file}, line {line}: {type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"


def argument_types(cls: Any) -> dict[str, Any]:
    """Type annotations of a class's arguments; empty if they cannot be resolved."""
    found: dict[str, Any] = {}
    for constructor in _constructors(cls):
        with suppress(Exception):  # some annotations only make sense to a type checker
            found = {**get_type_hints(constructor), **found}
    return found


def parameters_of(cls: Any) -> dict[str, inspect.Parameter]:
    """The arguments of a class by name, with those that `**kwargs` passes on to its base classes."""
    found = {} if inspect.isclass(cls) else dict(inspect.signature(cls).parameters)
    for constructor in _constructors(cls):
        _, *parameters = inspect.signature(constructor).parameters.values()
        found = {**{one.name: one for one in parameters}, **found}
    return found


def _constructors(cls: Any) -> Iterator[Any]:
    """`__init__` of a class, and those of its base classes as long as each takes `**kwargs`."""
    for base in inspect.getmro(cls)[:-1] if inspect.isclass(cls) else ():
        if constructor := vars(base).get("__init__"):
            yield constructor
            if not any(one.kind is one.VAR_KEYWORD for one in inspect.signature(constructor).parameters.values()):
                return


def differences(old: Any, new: Any, key: str) -> list[str]:
    """Settings of `new` that differ from `old`, as `--name value`; a different class counts once, by its name."""
    if is_class(old) and is_class(new) and old["class_path"] != new["class_path"]:
        return [f"--{key} {short(new)}"]
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in new:
            found += differences(old.get(name), new[name], key if name == "init_args" else f"{key}.{name}")
        return found
    return [] if old == new else [f"--{key} {short(new)}"]


def flat(node: Any, name: str = "") -> dict[str, Any]:
    """The settings of a configuration by option name, such as `model.net.width`; a class is its name."""
    if isinstance(node, list) and node and all(is_class(one) for one in node):
        found = {name: ", ".join(map(short, node))}
        for one in node:
            inner = flat(one, f"{name}.{short(one)}")
            found |= {key: value for key, value in inner.items() if "." in key.removeprefix(f"{name}.")}
        return found
    if not isinstance(node, dict) or not node:
        return {name: node}
    found = {name: short(node)} if is_class(node) else {}
    children = {**(node.get("init_args") or {}), **(node.get("dict_kwargs") or {})} if is_class(node) else node
    for key, value in children.items():
        found |= flat(value, f"{name}.{key}".lstrip("."))
    return found


def comment(text: str) -> str:
    """The comment at the head of a YAML file, as one line."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.strip("# ") for line in lines)


def short(value: Any) -> str:
    """A setting as text; a class as its name without the module."""
    return str(value["class_path"]).rpartition(".")[2] if is_class(value) else str(value)


def as_list(given: Any) -> list[Any]:
    """A new list from None, one value or a list."""
    return [] if given is None else [*given] if isinstance(given, list) else [given]


def nearest(given: str, known: Any, prefix: str = "") -> str:
    """The text ", did you mean X?" with the known name closest to the given one, or ""."""
    names = list(known)
    lower = given.lower()
    near = [name for name in names if name.lower() == lower]
    if "/" not in given:
        leaf = lower.lstrip("-").rpartition(".")[2]
        near += [name for name in names if name.lstrip("-").rpartition(".")[2].lower() == leaf]
    near += difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    near += [name for name in names if len(lower) > 2 and name.lower().startswith(lower)]
    return f", did you mean {prefix}{near[0]}?" if near else ""
