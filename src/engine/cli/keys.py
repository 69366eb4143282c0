"""Checks for what the parser silently accepts: repeated keys in a YAML file, and null for any argument."""

import inspect
from typing import Any, Literal, get_args, get_origin

import yaml

from src.engine.system.classes import Tree, argument_types, import_class, is_class, parameters_of, walk
from src.engine.system.errors import InputError

MISREAD = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null")  # tags of words such as on and no


def check_keys(node: yaml.Node | None, given: str, dotted: bool, arguments: bool = False) -> None:
    """Raise InputError if a key of a YAML file is repeated, or a setting's name has dots; unless `dotted`.

    A plain dict among the `arguments` of a class may have keys with dots.
    """
    lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            raise InputError(f"--config {given}, line {line}: {name} is also in line {lines[name]}: keep one of them")
        lines[name] = line
        if key.tag in MISREAD and not dotted:
            raise InputError(f"--config {given}, line {line}: {name} is not the name of a setting: put it in quotes")
        if "." in name and not dotted:
            nested = f"{': {'.join(name.split('.'))}: ...{'}' * name.count('.')}"
            raise InputError(f"--config {given}, line {line}: {name} has dots: write {nested}")
        check_keys(value, given, (dotted or arguments) and not _names_class(value), name == "init_args")
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        check_keys(item, given, dotted and not _names_class(item))


def _names_class(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode) and any(key.value == "class_path" for key, _ in node.value)


def refuse_nulls(tree: Tree) -> None:
    """Raise InputError if an argument of a class is null and its type does not allow it; jsonargparse misses that."""
    for key, node in walk(tree):
        cls = import_class(node["class_path"]) if is_class(node) else None
        defaults = parameters_of(cls) if cls else {}
        given = node.get("init_args") or {} if cls else {}
        for name in (name for name, value in given.items() if value is None and name in defaults):
            hint = argument_types(cls).get(name, Any)
            takes_null = any(each in (Any, object, type(None)) for each in (hint, *get_args(hint)))
            if defaults[name].default is not None and not takes_null:
                choices = map(str, get_args(hint)) if get_origin(hint) is Literal else [inspect.formatannotation(hint)]
                raise InputError(f"--{key}.{name} null: expected {', '.join(choices)}")
