"""Checks a YAML file for repeated keys: the parser would silently use the last one."""

import yaml

from src.engine.system.errors import InputError

MISREAD = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null")  # tags of words such as on and no


def check_keys(node: yaml.Node | None, given: str, dotted: bool, arguments: bool = False) -> None:
    """Check that no key of a YAML file stands twice, and, unless `dotted`, that no name of a setting has dots.

    A plain dict among the `arguments` of a class may have keys with dots.

    Raises:
        InputError: there is such a key; the message names the line.
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
