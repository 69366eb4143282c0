"""Merges recipe, overlays and command line into one tree of settings.

A tree is a configuration as read from YAML: dicts, lists and plain values. A class in it is a dict with `class_path`
and `init_args`. Bare class names are replaced by dotted paths here, so all other code sees dotted paths only.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader
from lightning.pytorch import LightningModule

from src import ROOT
from src.engine.cli import class_names
from src.engine.cli.usage import SHORT_FLAGS
from src.engine.runs.checkpoint import PATHS
from src.engine.system.classes import Tree, as_list, import_class, is_class, nearest, short
from src.engine.system.errors import InputError
from src.engine.system.hooks import bare_flags
from src.engine.training.checks import FOLLOWED
from src.engine.training.early_stopping import watched

Option = tuple[str, str | None]

STAGES = ("fit", "validate", "test", "predict")
# Options without a value: the next argument is not read as one.
BARE_FLAGS = ("-h", "--help", "--help_all", "--quiet", "--debug", "--print_config")
# Arguments by which Lightning tells two callbacks of one class apart.
STATE_KEY = ("monitor", "mode", "every_n_train_steps", "every_n_epochs", "train_time_interval")

MISREAD = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null")  # tags of words such as on and no


def split_command_line(args: list[str]) -> tuple[str | None, list[str], list[Option]]:
    """Stage (or None), configuration files, and all other options with their values. Raises InputError for others."""
    stage: str | None = None
    files: list[str] = []
    options: list[Option] = []
    words = list(args)
    known = [*BARE_FLAGS, *bare_flags()]
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            if word in STAGES and stage:
                raise InputError(f"{stage} {word}: only one of {', '.join(STAGES)} can run at a time")
            if word not in STAGES:
                raise InputError(f"{word}: expected one of {', '.join(STAGES)}{nearest(word, STAGES)}")
            stage = word
            continue
        flag, equals, text = word.partition("=")
        value: str | None = text
        if not equals:
            bare = flag in known or not words or words[0].startswith("--")
            if flag.endswith("fast_dev_run"):
                bare = bare or not re.fullmatch(r"\d+|true|false", words[0], re.IGNORECASE)
            value = None if bare else words.pop(0)
        if flag in ("-c", "--config"):
            if not value:
                raise InputError(f"{flag} needs a file, such as --config configs/default.yaml")
            files.append(value)
        elif value is None and flag not in known and not flag.endswith((".help", "fast_dev_run")):
            raise InputError(f"{flag} needs a value{nearest(flag, known)}")
        else:
            options.append((flag, value))
    return stage, files, options


def full_option(flag: str, value: str | None) -> str:
    """An option in the parser's form: short flags get the prefix `--trainer.`, a bare --fast_dev_run the value true."""
    if flag == "--help_all":
        return "--help"
    name = flag.removeprefix("--").partition(".")[0]
    full = f"--trainer.{flag.removeprefix('--')}" if name in SHORT_FLAGS else flag
    if value is None and full == "--trainer.fast_dev_run":
        value = "true"
    return full if value is None else f"{full}={value}"


def choose_recipe(loaded: list[tuple[Path, Tree]], saved: Tree) -> tuple[Tree, str, list[Tree]]:
    """The recipe, its name (the file name without suffix) and the overlays among the given configurations.

    The recipe is the last one given; default: the configuration `saved` in a checkpoint, or `configs/default.yaml`.
    Raises InputError if the model or the data of the recipe has no class.
    """
    recipes = [(path, tree) for path, tree in loaded if is_recipe(tree)]
    default = ROOT / "configs" / "default.yaml"
    path, recipe = recipes[-1] if recipes else (default, saved) if is_recipe(saved) else load_config(str(default))
    for key in ("model", "data"):
        if isinstance(recipe.get(key), dict) and not is_class(recipe[key]):
            raise InputError(f"{path} has model and data, so it is a recipe, but {key} has no class_path")
    recipe = merge({}, recipe, "", [])
    return {"data": None, **recipe}, path.stem, [tree for _, tree in loaded if not is_recipe(tree)]


def describe_files(loaded: list[tuple[Path, Tree]], saved: Tree) -> str:
    """Which of the files is the recipe, and which are overlays, in one line."""
    recipes = [str(path) for path, tree in loaded if is_recipe(tree)]
    default = "of the checkpoint" if is_recipe(saved) else "configs/default.yaml"
    overlays = [str(path) for path, tree in loaded if not is_recipe(tree)]
    return f"Recipe {(recipes or [default])[-1]}{' with ' if overlays else ''}{', '.join(overlays)}"


def load_config(given: str, dotted: bool = False) -> tuple[Path, Tree]:
    """Path and tree of a YAML file, found in the working directory or else in the project; a search has `dotted` keys.

    Raises InputError if the file is missing, is not a YAML mapping, has a key twice or with a dot, or names a class
    that does not exist.
    """
    candidates = [Path(given).expanduser(), ROOT / given]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        known = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "configs").rglob("*.yaml"))]
        named = [name for name in known if Path(name).stem == given]
        raise InputError(f"--config {given}: no such file{nearest(named[0] if named else given, known)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        tree = parse_value(text)
    except (InputError, OSError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise InputError(f"--config {given} is not YAML: {detail}") from error
    try:
        # The same scanner that parsed it; the Python one rejects tabs after values.
        check_keys(yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), given, dotted)
    except RecursionError as error:
        raise InputError(f"--config {given} contains itself, by an alias") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise InputError(f"--config {given} is not a configuration: it holds {type(tree).__name__}, not settings")
    for name in ("trainer", "checkpoint"):
        if name in tree and tree[name] is None:
            del tree[name]  # all of its settings are comments
        elif not isinstance(tree.get(name, {}), dict):
            raise InputError(f"{given}: {name} is {tree[name]!r}: give its settings, as in {name}: {{NAME: VALUE}}")
    if short := [name for name in SHORT_FLAGS if name in tree]:
        raise InputError(f"{given}: {short[0]} belongs under trainer, as in trainer: {{{short[0]}: ...}}")
    try:
        return path, class_names.resolve_names(tree)
    except InputError as error:
        raise InputError(f"{given}: {str(error).removeprefix('--')}") from error


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


def parse_value(text: str) -> Any:
    """Parse a YAML value; 1e-3 is a number. Raises InputError if the text is not YAML."""
    try:
        return get_loader("yaml")(text)
    except Exception as error:  # the exception class depends on the YAML loader
        raise InputError(str(error)) from error


def is_recipe(tree: Tree) -> bool:
    """Whether a configuration has model and data, or a model that makes its own loaders; else it is an overlay."""
    cls = import_class(tree["model"]["class_path"]) if is_class(tree.get("model")) else None
    own_loaders = getattr(cls, "train_dataloader", None) not in (None, LightningModule.train_dataloader)
    return "model" in tree and ("data" in tree or own_loaders)


def merge_class_options(tree: Tree, options: list[Option], dropped: list[str]) -> tuple[Tree, list[Option]]:
    """Merge the classes of the command line into a tree; returns it and the other options. Unknown ones: InputError."""
    left: list[Option] = []
    for flag, value in sorted(options, key=_depth):  # a class before the classes in its arguments
        key = _key(flag)
        over: Tree = {}  # what is merged
        if value is None:
            pass
        elif flag.endswith(".help"):
            value = class_names.resolve_class(value, key.removesuffix(".help"))
        elif is_class_setting(tree, key) and not class_names.names_function(value):
            given = None if value.lower() in ("none", "null") else parse_option(flag, value)
            if isinstance(given, str) and given.endswith((".yaml", ".yml")):
                given = load_config(given)[1]
            given = {"class_path": given} if isinstance(given, str) else given
            over = nest(key, class_names.resolve_names(given, key))
        elif value == "null" and key.count(".") > 1 and is_class(setting(tree, key.rpartition(".")[0])):
            over = nest(key, None)  # jsonargparse 4.53 makes it the text None if the argument has no type
        elif key in ("strategy", "trainer.strategy") and re.fullmatch(r"[\w.]+(\.\w+|Strategy)", value):
            over = nest("trainer.strategy", {"class_path": class_names.resolve_class(value, key)})
        elif key in ("trainer", "checkpoint") and isinstance(given := parse_option(flag, value), dict):
            over = {key: class_names.resolve_names(given, key)}
        elif class_names.is_part_of_trainer(value, key):
            value = class_names.resolve_class(value, key)
            over = nest(key, {"class_path": value}) if is_class(setting(tree, key)) else {}
        elif key.rstrip("+") in class_names.PARTS_OF_TRAINER and value[:1] in ("[", "{"):
            value = json.dumps(class_names.resolve_names(parse_option(flag, value), key))
        if over:
            tree = merge(tree, over, "", dropped)
            # Those that are set again: the parser would apply them after it.
            left = [one for one in left if setting(over, _key(full_option(one[0], "").rstrip("="))) is None]
        else:
            left.append((flag, value))
    for flag, _ in left:
        key, _, leaf = flag.removeprefix("--").partition(".")
        if key in class_names.CLASS_KEYS and leaf and not flag.endswith(".help") and not is_class(tree.get(key)):
            own = ", or give the model's own option, as in --model.lr" if key in ("optimizer", "lr_scheduler") else ""
            raise InputError(f"{flag}: there is no {key}; add one, as in --{key} CLASS{own}")
    return tree, left


def parse_option(flag: str, value: str) -> Any:
    """The value of an option. Raises InputError if it is not YAML."""
    try:
        return parse_value(value)
    except InputError as error:
        raise InputError(f"{flag} {value}: not YAML: put quotes within the quotes ({error})") from error


def _key(flag: str) -> str:
    return flag.removeprefix("--").removesuffix(".class_path").replace(".init_args", "")


def _depth(option: Option) -> int:
    """How deep within model, data, optimizer or schedule an option is; the order of others counts."""
    key = _key(option[0])
    return key.count(".") if key.partition(".")[0] in class_names.CLASS_KEYS else 0


def other_parts(saved: Tree, tree: Tree) -> str:
    """How model, network, data and data paths of `saved` differ from those of `tree`, as text."""
    found = []
    paths = [name for name in (tree.get("data") or {}).get("init_args") or {} if PATHS.search(name)]
    for key in ("model", "model.net", "data", *(f"data.{name}" for name in paths)):
        old, new = setting(saved, key), setting(tree, key)
        classes = [import_class(node["class_path"]) if is_class(node) else node for node in (old, new)]
        if None not in (old, new) and classes[0] != classes[1]:
            found.append(f"--{key} {short(old)}, not {short(new)}")
    return " and ".join(found)


def check_mode(trees: list[Tree], options: list[Option]) -> None:
    """Raise InputError if the metric of the best checkpoint has no mode of its own; `trees`: recipe and overlays."""
    recipe, *later = [tree.get("checkpoint") or {} for tree in trees]
    for flag, value in options:
        if flag == "--checkpoint" and isinstance(settings := parse_option(flag, value or ""), dict):
            later.append(settings)
        elif flag.startswith("--checkpoint."):
            later.append({flag.removeprefix("--checkpoint."): None if value == "null" else value})
    monitor = next((one["monitor"] for one in [*reversed(later), recipe] if "monitor" in one), None)
    has_mode = any("mode" in one and one.get("monitor", monitor) == monitor for one in later)
    mode = recipe.get("mode")
    has_mode = has_mode or bool(mode and recipe.get("monitor") == monitor)
    if monitor and not has_mode and (mode == "max" or "loss" not in str(monitor).lower()):
        raise InputError(f"--checkpoint.monitor {monitor}: lowest or highest? give --checkpoint.mode min or max too")


def is_class_setting(tree: Tree, key: str) -> bool:
    """Whether the setting with this dotted name, such as `model.net`, is a class."""
    parent, _, leaf = key.rpartition(".")
    node = setting(tree, parent)
    return key in class_names.CLASS_KEYS or (is_class(node) and class_names.takes_class(node["class_path"], leaf))


def setting(tree: Tree, key: str) -> Any:
    """The value of the setting with a dotted name, or None."""
    node: Any = tree
    for name in filter(None, key.split(".")):
        node = node.get("init_args") if is_class(node) else node
        node = node.get(name) if isinstance(node, dict) else None
    return node


def nest(key: str, value: Any) -> Tree:
    """{"a": {"b": value}} for the dotted name a.b."""
    root, _, rest = key.partition(".")
    return {root: nest(rest, value) if rest else value}


def merge(base: Any, over: Any, key: str, dropped: list[str], owner: str = "") -> Any:
    """Merge the tree `over` into `base`; its values win. `owner`: the class whose arguments these are.

    A class that replaces another starts from its own defaults: the lost arguments are added to `dropped`, one line per
    class. `name+` appends to the list `name`. A dict that is an argument of a class replaces the old one as a whole.
    """
    if is_class(base) and isinstance(over, str):
        over = {"class_path": class_names.resolve_class(over, key)}
    if is_class(base) and isinstance(over, dict):
        if not is_class(over):
            if not over.keys() & {"init_args", "dict_kwargs"}:
                over = {"init_args": over}
            over = {"class_path": base["class_path"], **over}
        if import_class(over["class_path"]) is not import_class(base["class_path"]):
            if lost := base.get("init_args"):
                values = ", ".join(f"{name}={short(value)}" for name, value in lost.items())
                dropped.append(f"{key}: {short(over)} starts from its own defaults; {short(base)}'s {values} dropped")
            return over
    if base is None and isinstance(over, dict) and not is_class(over):
        base = {}  # so that `name+` becomes a list
    if isinstance(base, list) and base and is_class(base[-1]) and isinstance(over, dict) and not is_class(over):
        return [*base[:-1], merge(base[-1], over, key, dropped)]  # as an option changes the last of several
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    merged = dict(base)
    for name, value in over.items():
        path = f"{key}.{name}" if key and name != "init_args" else key or name
        is_dict = isinstance(value, dict) and not (is_class(value) or is_class(merged.get(name)))
        if owner and is_dict and class_names.takes_mapping(owner, name):
            merged[name] = value
        elif name.endswith("+"):
            before = [one for one in as_list(merged.get(name[:-1])) if not isinstance(one, bool)]  # logger: true
            merged[name[:-1]] = [*before, *as_list(value)]
        else:
            inner = {**base, **over}.get("class_path", "") if name in ("init_args", "dict_kwargs") else ""
            merged[name] = merge(merged.get(name), value, path, dropped, inner)
    return merged


def without_repeats(parts: Any, best: Namespace) -> Any:
    """Remove repeats, which a continued run has from its first start, from a list of callbacks, loggers or plugins.

    Callbacks that monitor the same metric in the same way count as one; the arguments of the last one are kept. An
    EarlyStopping may follow the settings of the best checkpoint.
    """
    if not isinstance(parts, list):
        return parts
    kept = {}
    for part in parts:
        arguments: Any = part.get("init_args", {}) if isinstance(part, Namespace) else {}
        if arguments.get("monitor") == FOLLOWED:
            arguments = arguments.as_dict() | dict(zip(("monitor", "mode"), watched(best), strict=True))
        is_monitor = arguments.get("monitor") is not None
        same = [part.class_path.rpartition(".")[2], *map(arguments.get, STATE_KEY)] if is_monitor else part
        kept[str(same)] = part
    return list(kept.values())
