"""Finds and compares classes named in a configuration."""

import difflib
import importlib
import inspect
import re
from functools import cache
from typing import Any, get_type_hints

from src import ROOT

Tree = dict[str, Any]
"""A configuration as read from YAML; a class in it is a dict with `class_path` and `init_args`."""


@cache
def project_classes() -> dict[str, list[str]]:
    """Dotted paths of this project's public classes, by class name. Nothing is imported."""
    classes: dict[str, list[str]] = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name in re.findall(r"^class ([A-Za-z]\w*)", path.read_text(encoding="utf-8"), re.MULTILINE):
            classes.setdefault(name, []).append(f"{module}.{name}")
    return classes


def is_class(node: Any) -> bool:
    """Whether a setting names a class."""
    return isinstance(node, dict) and isinstance(node.get("class_path"), str)


def import_class(path: str) -> Any:
    """The class or function at a dotted path, or None if missing. Errors inside the module are not caught."""
    module, _, name = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")):
        return None
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            return None
        raise


def argument_types(cls: Any) -> dict[str, Any]:
    """Type annotations of a class's arguments; empty if they cannot be resolved."""
    try:
        return get_type_hints(cls.__init__) if inspect.isclass(cls) else {}
    except Exception:  # some annotations only make sense to a type checker
        return {}


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
