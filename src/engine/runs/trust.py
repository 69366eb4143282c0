"""Checks that a checkpoint names only allowed classes with plain arguments; nothing else is imported or called."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from lightning.pytorch import cli as lightning_cli
from torch import nn, optim
from torch.optim import lr_scheduler

from src.engine.system.classes import Tree, argument_types, import_class, is_class, project_classes
from src.engine.system.errors import InputError

# Where library classes are looked up, and the base classes allowed there.
LIBRARIES: tuple[tuple[str, Any, tuple[type, ...]], ...] = (
    ("torch.optim.lr_scheduler", lr_scheduler, (lr_scheduler.LRScheduler,)),
    ("torch.optim", optim, (optim.Optimizer,)),
    ("torch.nn", nn, (nn.Module,)),
    ("lightning.pytorch.cli", lightning_cli, (lr_scheduler.ReduceLROnPlateau,)),
)
PLAIN = (type(None), bool, int, float, str)
# Arguments that are paths or URLs: by the last word of their name, or by a value that looks like a path.
PATHS = re.compile(r"(^|_)(path|paths|dir|dirpath|file|files|filename|folder|root|url|weights|pretrained)$")
PATH_VALUE = re.compile(r"[/\\]|^[.~]")
MAX_DEPTH = 50  # nested classes, lists and dicts


@dataclass(frozen=True)
class Trust:
    """What the user trusts in a checkpoint.

    Args:
        modules: packages and modules given by `--trust`, whose classes may be used.
        classes: dotted paths of classes named in the user's own configuration.
        paths: whether paths in the checkpoint may be used: it is in one of the user's own run folders.
    """

    modules: tuple[str, ...] = ()
    classes: frozenset[str] = frozenset()
    paths: bool = False

    def covers(self, path: str) -> bool:
        """Whether the user trusts the class at a dotted path."""
        return path in self.classes or any(path.startswith(f"{module}.") for module in self.modules)


NO_TRUST = Trust()


def classes_in(node: Any) -> Iterator[str]:
    """Dotted paths of all classes named in a configuration."""
    if is_class(node):
        yield node["class_path"]
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from classes_in(value)


def checked_class(path: Any, bases: tuple[type, ...], trust: Trust, place: str) -> type:
    """The class at a dotted path read from a checkpoint.

    Args:
        path: dotted path; any type, since it is not trusted.
        bases: the class must be a subclass of one of these.
        trust: what the user trusts.
        place: the setting, such as `model.net`, for messages.

    Raises:
        InputError: the class is neither of this project, torch or Lightning nor trusted by the user, or it is not a
            subclass of `bases`.
    """
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")):
        raise InputError(f"{place} names {path!r:.80}, which is not a class")
    module, _, name = path.rpartition(".")
    cls: Any = None
    if trust.covers(path):
        cls = import_class(path)
    elif module.partition(".")[0] == "src":
        found = project_classes().get(name, [])
        # Finds a class that has moved to another module by its name.
        cls = import_class(path if path in found else found[0]) if path in found or len(found) == 1 else None
    else:
        for prefix, library, kinds in LIBRARIES:
            if cls is None and f"{module}.".startswith(f"{prefix}."):
                cls = vars(library).get(name)
                cls = cls if isinstance(cls, type) and issubclass(cls, kinds) else None
    if cls is None:
        raise InputError(
            f"{place} is {path}, a class that is not of this project, torch.nn or torch.optim, so it is not loaded;"
            f" if you trust it and the source of the checkpoint, add --trust {module or path}"
        )
    if not isinstance(cls, type) or not issubclass(cls, bases):
        raise InputError(f"{place} is {path}, which is not a {' or '.join(base.__name__ for base in bases)}")
    return cls


def checked_spec(
    spec: Any, bases: tuple[type, ...], trust: Trust, place: str, dropped: list[str] | None = None, depth: int = 0
) -> Tree:
    """A class in a checkpoint with its arguments, checked: plain values, or classes where the type is a class.

    Args:
        spec: `class_path` and `init_args`.
        bases: the class must be a subclass of one of these.
        trust: what the user trusts.
        place: the setting, such as `model.net`, for messages.
        dropped: the names of settings skipped because they are paths are appended to this list.
        depth: nesting depth so far.

    Raises:
        InputError: a class or an argument is not allowed.
    """
    if not isinstance(spec, dict):
        raise InputError(f"{place} is {_kind(spec)}, which is not a class")
    cls = checked_class(spec.get("class_path"), bases, trust, place)
    given = spec.get("init_args") or {}
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise InputError(f"the arguments of {place} are {_kind(given)}, not names and values")
    parameters = inspect.signature(cls).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    types = argument_types(cls)
    arguments = {}
    for name, value in given.items():
        if name not in parameters and not takes_any:
            raise InputError(f"{place} has an argument {name}, which {cls.__name__} does not take")
        if not trust.paths and isinstance(value, str) and (PATHS.search(name) or PATH_VALUE.search(value)):
            if dropped is not None:
                dropped.append(f"{place}.{name}")
            continue
        arguments[name] = _checked_value(value, types.get(name, Any), trust, f"{place}.{name}", dropped, depth + 1)
    path = spec["class_path"]
    is_moved = path.startswith("src.") and path not in project_classes().get(cls.__name__, [])
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}" if is_moved else path, "init_args": arguments}


def _checked_value(value: Any, hint: Any, trust: Trust, place: str, dropped: list[str] | None, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise InputError(f"{place} is nested more than {MAX_DEPTH} levels deep")
    hints = (hint, *get_args(hint))
    if isinstance(value, dict) and "class_path" in value:
        wanted = tuple(one for one in (*hints, *_returned(hint)) if isinstance(one, type) and get_origin(one) is None)
        wanted = tuple(one for one in wanted if one not in (*PLAIN, object, dict, list, tuple, set, bytes, type))
        if any(one in (Any, object) or _is_callable(one) for one in hints):
            wanted += (object,) if trust.covers(str(value["class_path"])) else (nn.Module,)
        if not wanted:
            raise InputError(f"{place} is a class, but only plain values are allowed")
        return checked_spec(value, wanted, trust, place, dropped, depth)
    if isinstance(value, str) and not value.isidentifier() and any(_is_callable(one) for one in hints):
        raise InputError(f"{place} is {value!r:.80}, but functions of a checkpoint are not looked up")
    if isinstance(value, list | tuple):
        inner = get_args(hint)[0] if get_origin(hint) in (list, tuple) and get_args(hint) else Any
        return [_checked_value(one, inner, trust, place, dropped, depth + 1) for one in value]
    if isinstance(value, dict):
        if not all(isinstance(name, str | int) for name in value):
            raise InputError(f"{place} has a key that is neither text nor a number")
        return {name: _checked_value(one, Any, trust, place, dropped, depth + 1) for name, one in value.items()}
    if type(value) not in PLAIN:
        raise InputError(f"{place} is {_kind(value)}, but only plain values are allowed")
    return value


def _is_callable(hint: Any) -> bool:
    return hint is Callable or get_origin(hint) in (Callable, type) or "Callable" in str(get_origin(hint))


def _kind(value: Any) -> str:
    return "empty" if value is None else f"of type {type(value).__name__}"


def build(spec: Tree) -> Any:
    """Create the object of a spec that `checked_spec` returned; the only names looked up are its classes."""
    return _maker(spec)()


def _maker(spec: Tree) -> partial[Any]:
    cls = import_class(spec["class_path"])
    types = argument_types(cls)
    return partial(cls, **{name: _built(one, types.get(name)) for name, one in (spec.get("init_args") or {}).items()})


def _built(value: Any, hint: Any) -> Any:
    """A value of a configuration as the argument of this type that jsonargparse would make of it."""
    options = _options(hint)
    if is_class(value):
        maker, returned = _maker(value), _returned(hint)
        # A function that makes an optimizer, or the object itself.
        return maker if isinstance(maker.func, type) and issubclass(maker.func, returned) else maker()
    if isinstance(value, list):
        one = next((one for one in options if get_origin(one) in (list, tuple)), None)
        built = [_built(item, get_args(one)[0] if get_args(one) else None) for item in value]
        return tuple(built) if get_origin(one) is tuple else built
    if isinstance(value, dict):
        if cls := next((one for one in options if isinstance(one, type) and is_dataclass(one)), None):
            return _maker({"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": value})()
        inner = next((get_args(one)[1] for one in options if get_origin(one) is dict), None)
        return {name: _built(item, inner) for name, item in value.items()}
    if isinstance(value, str) and str not in options:
        for one in options:
            if isinstance(one, type) and issubclass(one, Enum | Path):
                return one[value] if issubclass(one, Enum) else one(value)
        if "." in value and any(_is_callable(one) for one in options):
            return import_class(value)
    return value


def _options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type, such as (int, None) for int | None."""
    is_union = get_origin(hint) in (Union, UnionType)
    return tuple(one for part in get_args(hint) for one in _options(part)) if is_union else (hint,)


def _returned(hint: Any) -> tuple[type, ...]:
    """The classes that a function of this type returns."""
    functions = [one for one in _options(hint) if get_origin(one) is Callable and get_args(one)]
    returned = [one for function in functions for one in _options(get_args(function)[-1])]
    return tuple(one for one in returned if isinstance(one, type) and one is not type(None))
