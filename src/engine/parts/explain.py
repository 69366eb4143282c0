"""Rewrites jsonargparse's errors as one line: what was given and what would work."""

import re

from lightning.pytorch.cli import LightningArgumentParser

from src.engine.cli.config import Option, is_recipe, load_config
from src.engine.cli.usage import SHORT_FLAGS
from src.engine.system.classes import Tree, import_class, is_class, nearest, parameters_of, walk
from src.engine.system.hooks import bare_flags


def explain(message: str, parser: LightningArgumentParser, tree: Tree, options: list[Option], files: list[str]) -> str:
    """Rewrite an error message of jsonargparse, for the settings in `tree`, as one line in the words of the user."""
    message = " ".join(message.split())
    plain = (*SHORT_FLAGS, "config", "print_config", "help_all", *parser.get_defaults().keys())
    known = [*bare_flags(), *(f"--{name}" for name in plain)]
    for key, value in walk(tree):
        if is_class(value) and (cls := import_class(value["class_path"])):
            known += [f"--{key}.{name}" for name in parameters_of(cls)]
    if found := re.match(r"unrecognized arguments: (--[^ =]+)", message):
        return f"{found[1]}: no such option{'' if found[1] in known else nearest(found[1], known)}"
    if found := re.match(r"(?:Group '(?P<group>\S+)' does not accept option|Option) '(?P<leaf>[^']+)'", message):
        key = ".".join(filter(None, (found["group"], found["leaf"])))
        settings = [flag.removeprefix("--") for flag in known]
        return f"{_origin(key, options, files)}: no such setting{nearest(key, settings)}"

    key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    classes = re.findall(r"class_path '([^']+)'", message)
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        arguments = [name for name in parameters_of(import_class(classes[-1])) if name != found[1]]
        if key in ("optimizer", "lr_scheduler"):  # arguments that Lightning fills in
            arguments = [name for name in arguments if name not in ("params", "optimizer")]
        name = classes[-1].rpartition(".")[2]
        key = f"{key}.{found[1]}"
        near = nearest(found[1], arguments) or f"; it has {', '.join(arguments) or 'none'}"
        return f"{_origin(key, options, files)}: {name} has no argument {found[1]}{near}"
    if found := re.match(r"Parser key \"(\w+)\": Unable to load config '([^']*)'", message):  # it has settings below it
        key = found[1]
        settings = [f"--{name}" for name in plain if name.startswith(f"{key}.")]
        more = "; to save no checkpoints: --trainer.enable_checkpointing false" if key == "checkpoint" else ""
        return (
            f"{_origin(key, options, files)} {found[2]}: give settings of it, such as {', '.join(settings[:2])}{more}"
        )
    if found := re.search(r"arguments are required: (\w+)", message):
        return f"{classes[-1].rpartition('.')[2]} needs {found[1]}: give --{key}.{found[1]}"
    if "Problem with given class_path" in message:  # a scheduler may be of either class
        message = re.sub(r"- Import path \S+ does not correspond to a subclass of ReduceLROnPlateau", "", message)
    if found := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", message):
        hint = "; networks go to --model.net" if found[2] == "LightningModule" else ""
        return f"{_origin(key, options, files)}: {found[1].rpartition('.')[2]} is not a {found[2]}{hint}"
    innermost = message[message.rfind("Parser key") :] if key else ""
    value = re.search(r"(?:Got|Given) value: (\S+)", innermost)
    expected = re.findall(r"Expected an? <class '([\w.]+)'>", innermost)
    choices = re.findall(r"typing\.Literal\[([^]]*)\]", innermost)
    if value:
        words = [word.strip(" '") for choice in choices for word in choice.split(",")]
        names = [name for name in expected if name != "NoneType"] + words
        wanted = f"expected {', '.join(dict.fromkeys(names))}" if names else "not a class that fits here"
        return f"{_origin(key, options, files)} {value[1]}: {wanted}{nearest(value[1], words)}"
    return message


def _origin(key: str, options: list[Option], files: list[str]) -> str:
    """A setting as the user gave it: the flag, or the name and the configuration file."""
    leaf = key.rpartition(".")[2]
    for flag, _ in options:
        if flag.removeprefix("--").replace(".init_args", "") in (key, leaf):
            return flag
    newest = files[::-1]
    for file in sorted(newest, key=lambda file: is_recipe(load_config(file)[1])):  # the last overlay counts
        if re.search(rf"(?<!\w){re.escape(leaf)}\s*:", load_config(file)[0].read_text(encoding="utf-8")):
            return f"{key} (in {file})"
    return f"--{key}"
