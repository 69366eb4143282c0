"""Writes the configuration of a run so that it repeats the run, and reads it back to be sure."""

import inspect
import re
import warnings
from enum import Enum
from typing import get_args

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from src.engine.runs.checkpoint import reason_of
from src.engine.system.classes import Tree, argument_types, differences, import_class, is_class, walk
from src.engine.system.errors import InputError
from src.engine.system.hooks import bare_flags, hooks

# Options of a single call: not part of a saved configuration.
CALL_ONLY = ("config", "ckpt_path", "trust", "run", "quiet", "debug")
NOT_WRITTEN = "Unable to serialize instance "  # what jsonargparse writes for an object
# For the default of Lightning's Timer, an Enum whose values are texts.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))
# Quotes texts such as 1e3, which PyYAML reads as text and jsonargparse as a number.
yaml.SafeDumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+.\d]"), list("-+.0123456789"))


def dump(tree: Tree) -> str:
    """A tree as YAML that jsonargparse reads as the same tree."""
    return yaml.safe_dump(tree, sort_keys=False)


def checked_settings(parser: LightningArgumentParser, given: Namespace, has_monitor: bool) -> Tree:
    """A configuration as a tree that can be written to `config.yaml`. Raises InputError if it would be read as another.

    Args:
        parser: reads the text back.
        given: the configuration.
        has_monitor: whether it names the metric that selects the best checkpoint; else that is left out, so that a run
            that repeats or continues this one chooses it again.
    """
    tree = plain_settings(parser, given, has_monitor)
    again = plain_settings(parser, parser.parse_string(dump(tree)), has_monitor)
    if dump(again) != dump(tree):
        changed = [one for key in tree for one in differences(again.get(key), tree[key], key)]
        raise InputError(f"{changed[0]}: config.yaml would not repeat this run: give a plain value")
    return tree


def plain_settings(parser: LightningArgumentParser, given: Namespace, has_monitor: bool) -> Tree:
    """A configuration as a tree, which a run can take as its recipe; arguments: see `checked_settings`."""
    for key in (*CALL_ONLY, *(flag.removeprefix("--") for flag in bare_flags())):
        given.pop(key, None)
    for key in hooks("UNWRITTEN_IF_ZERO"):  # so that a run can be read where this part has been removed
        if not given.get(key):
            given.pop(key, None)
    try:
        with warnings.catch_warnings(action="ignore"):  # of what `_drop_objects` handles
            tree: Tree = yaml.safe_load(parser.dump(given, skip_unset=False))
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"the configuration cannot be written to config.yaml: {reason_of(error)}") from error
    if not has_monitor:
        del tree["checkpoint"]["monitor"]
    _drop_objects(tree)
    return tree


def _drop_objects(tree: Tree) -> None:
    """Remove defaults that jsonargparse cannot write, as `torch.device("cpu")`; for other values raise InputError."""
    for node in [value for _, value in walk(tree) if is_class(value)]:
        cls, given = import_class(node["class_path"]), node.get("init_args") or {}
        for name in [name for name, value in given.items() if str(value).startswith(NOT_WRITTEN)]:
            text = given[name].removeprefix(NOT_WRITTEN)
            parameter = inspect.signature(cls).parameters.get(name)
            if parameter is not None and str(parameter.default) == text:
                del given[name]
            elif str in get_args(argument_types(cls).get(name)):
                given[name] = text  # jsonargparse takes a text for a function
    for key, value in walk(tree):
        if isinstance(value, str) and value.startswith(NOT_WRITTEN):
            text = value.removeprefix(NOT_WRITTEN)
            raise InputError(f"--{key} {text} cannot be written to config.yaml: give another value")
