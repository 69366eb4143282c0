"""Classes of a configuration: finds those of bare names, and tells what their arguments may be."""

import importlib
import inspect
from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from src.engine.system import classes
from src.engine.system.classes import Tree
from src.engine.system.errors import InputError

# Settings that are a class in every recipe.
CLASS_KEYS = ("model", "data", "optimizer", "lr_scheduler")
BASES = {"model": "LightningModule", "data": "LightningDataModule", "net": "Module"}
MAX_LISTED = 12  # classes in one message
# Settings of the Trainer that may be a class, or several.
PARTS_OF_TRAINER = ("trainer.callbacks", "trainer.logger", "trainer.plugins", "trainer.profiler", "trainer.strategy")
# Where a bare class name is looked up, in this order, if this project has no such class. Lightning's
# ReduceLROnPlateau is before torch's because it knows which metric to monitor.
NAMESPACES = ["torch.nn", "lightning.pytorch.cli", "torch.optim", "torch.optim.lr_scheduler"]
NAMESPACES += [f"lightning.pytorch.{one}" for one in ("callbacks", "loggers", "strategies", "profilers", "plugins")]


def resolve_class(name: str, key: str) -> str:
    """The dotted path of a class, looked up here, in torch and in Lightning; InputError if none or several fit."""
    if "." in name:
        if classes.import_class(name) is None:
            module, _, leaf = name.rpartition(".")
            is_module = classes.import_class(f"{module}.__name__") is not None
            near = classes.nearest(leaf, classes.project_classes(), prefix=f"{module}.") if is_module else ""
            raise InputError(f"--{key} {name}: there is no class {leaf} in {module}{near}")
        return name
    own = classes.project_classes().get(name, [])
    if len(own) > 1:
        raise InputError(f"--{key} {name}: several classes have that name, give one of {', '.join(own)}")
    if own:
        return own[0]
    for namespace in NAMESPACES:
        if inspect.isclass(getattr(importlib.import_module(namespace), name, None)):
            return f"{namespace}.{name}"
    library = [n for space in NAMESPACES for n, v in vars(importlib.import_module(space)).items() if inspect.isclass(v)]
    near = classes.nearest(name, [*classes.project_classes(), *library]).removesuffix("?")
    here = classes.subclasses_here(BASES.get(key.rpartition(".")[2], ""), name)
    more = " ..." if len(here) > MAX_LISTED else ""
    known = f"; this project has {', '.join(here[:MAX_LISTED])}{more}" if here else ""
    raise InputError(f"--{key} {name}: no class of that name{near}{known}; package.module.Class works too")


def resolve_names(node: Any, key: str = "") -> Any:
    """A copy of a tree with every class name replaced by its dotted path."""
    if isinstance(node, list):
        return [resolve_names(item, key) for item in node]
    if isinstance(node, str) and (key in CLASS_KEYS or is_part_of_trainer(node, key)):
        node = {"class_path": node}
    if not isinstance(node, dict):
        return node
    node = dict(node)
    parent = None
    if isinstance(node.get("class_path"), str):
        parent = node["class_path"] = resolve_class(node["class_path"], key)
    for name, value in node.items():
        if name == "init_args" and parent and isinstance(value, dict):
            node[name] = {k: resolve_names(_as_class(parent, k, v), f"{key}.{k}") for k, v in value.items()}
        else:
            node[name] = resolve_names(value, f"{key}.{name}".lstrip("."))
    return node


def is_part_of_trainer(value: str, key: str) -> bool:
    """Whether a text is the class of a part of the Trainer, not true, false, or the name of a strategy or profiler."""
    words, key = value.split("."), key.rstrip("+")
    is_name = all(map(str.isidentifier, words)) and value.lower() not in ("none", "null", "true", "false")
    may_be_lower = key in ("trainer.callbacks", "trainer.logger")
    return is_name and key in PARTS_OF_TRAINER and (may_be_lower or words[-1][:1].isupper())


def _as_class(class_path: str, argument: str, value: Any) -> Any:
    """An argument of a class with bare names as classes, where its type is a class or a list of them."""
    if isinstance(value, list) and takes_class(class_path, argument, in_list=True):
        return [{"class_path": one} if isinstance(one, str) else one for one in value]
    is_name = isinstance(value, str) and takes_class(class_path, argument) and not names_function(value)
    return {"class_path": value} if is_name else value


def names_function(value: str) -> bool:
    """Whether a text is the dotted path of a function, which an argument may take as it is."""
    found = None if value.endswith((".yaml", ".yml")) else classes.import_class(value)
    return callable(found) and not inspect.isclass(found)


def takes_class(class_path: str, argument: str, in_list: bool = False) -> bool:
    """Whether an argument of a class is annotated with a class, such as a network, or with a list of classes."""
    annotation = classes.argument_types(classes.import_class(class_path)).get(argument)
    # The value of type[...] is a class without arguments.
    options: list[Any] = [annotation, *(() if get_origin(annotation) is type else get_args(annotation))]
    if in_list:
        options = [inner for one in options if get_origin(one) is list for inner in get_args(one)]
    options = [t for t in options if inspect.isclass(t) and get_origin(t) is None]
    # jsonargparse handles arguments that may also be text, a number or a duration.
    if any(issubclass(t, str | int | float | Enum | Path | timedelta) for t in options):
        return False
    return any(t not in (type(None), bytes, list, dict, tuple, set, object, Any) for t in options)


def takes_mapping(class_path: str, argument: str) -> bool:
    """Whether an argument of a class may be a dict with any keys; so may one without annotation."""
    annotation = classes.argument_types(classes.import_class(class_path)).get(argument, Any)
    return any((get_origin(one) or one) in (dict, Mapping, Any) for one in (annotation, *get_args(annotation)))


def refuse_nulls(tree: Tree) -> None:
    """Raise InputError if an argument of a class is null and its type does not allow it; jsonargparse misses that."""
    for key, node in classes.walk(tree):
        cls = classes.import_class(node["class_path"]) if classes.is_class(node) else None
        defaults = classes.parameters_of(cls) if cls else {}
        given = node.get("init_args") or {} if cls else {}
        for name in (name for name, value in given.items() if value is None and name in defaults):
            hint = classes.argument_types(cls).get(name, Any)
            takes_null = any(each in (Any, object, type(None)) for each in (hint, *get_args(hint)))
            if defaults[name].default is not None and not takes_null:
                choices = map(str, get_args(hint)) if get_origin(hint) is Literal else [inspect.formatannotation(hint)]
                raise InputError(f"--{key}.{name} null: expected {', '.join(choices)}")


def refuse_missing(tree: Tree, given: set[str]) -> None:
    """Raise InputError if an argument without type and default is not among those given; jsonargparse makes it null."""
    for key, node in classes.walk(tree):
        cls = classes.import_class(node["class_path"]) if classes.is_class(node) else None
        for name, argument in (classes.parameters_of(cls) if cls else {}).items():
            is_untyped = argument.default is argument.annotation is argument.empty
            is_null = (node.get("init_args") or {}).get(name, ...) is None
            if is_untyped and is_null and f"{key}.{name}" not in given:
                raise InputError(f"{node['class_path'].rpartition('.')[2]} needs {name}: give --{key}.{name}")
