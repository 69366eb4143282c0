"""Checks a YAML file for repeated keys: the parser would silently use the last one."""

import yaml

from src.engine.system.errors import InputError

MISREAD = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null")  # tags of words such as on and no


def check_keys(text: str, given: str, dotted: bool) -> None:
    """Check that no key stands twice, and that no name of a setting has dots.

    Args:
        text: YAML that can be parsed.
        given: the file, for messages.
        dotted: whether names may have dots.

    Raises:
        InputError: there is such a key, the message names the line; or the file contains itself.
    """
    try:
        _check(yaml.compose(text, yaml.SafeLoader), given, not dotted)
    except RecursionError as error:
        raise InputError(f"--config {given} contains itself, by an alias") from error


def _check(node: yaml.Node | None, given: str, plain: bool, arguments: bool = False) -> None:
    """Check a part of a file.

    Args:
        node: the part.
        given: the file.
        plain: whether the keys are names of settings, which have no dots.
        arguments: whether they are the arguments of a class; among their values only classes have settings.
    """
    lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            raise InputError(f"--config {given}, line {line}: {name} is also in line {lines[name]}: keep one of them")
        lines[name] = line
        if plain and key.tag in MISREAD:
            raise InputError(f"--config {given}, line {line}: {name} is not the name of a setting: put it in quotes")
        if plain and "." in name:
            nested = f"{': {'.join(name.split('.'))}: ...{'}' * name.count('.')}"
            raise InputError(f"--config {given}, line {line}: {name} has dots: write {nested}")
        _check(value, given, plain and (not arguments or _names_class(value)), name == "init_args")
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        _check(item, given, plain or _names_class(item))


def _names_class(node: yaml.Node) -> bool:
    return isinstance(node, yaml.MappingNode) and any(key.value == "class_path" for key, _ in node.value)
