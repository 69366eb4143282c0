"""The settings of a configuration by option name, and what its comment says."""

from itertools import takewhile
from typing import Any

from src.engine.system.classes import is_class, short


def flat(node: Any, name: str = "") -> dict[str, Any]:
    """The settings of a configuration by option name, such as `model.net.width`; a class is its name."""
    if isinstance(node, list) and node and all(is_class(one) for one in node):
        found = {name: ", ".join(map(short, node))}
        for one in node:
            found |= {
                key: value for key, value in flat(one, f"{name}.{short(one)}").items() if "." in key[len(name) + 1 :]
            }
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
