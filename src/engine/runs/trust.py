"""Checks that a checkpoint names only allowed classes with plain arguments; nothing else is imported or called."""

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from enum import Enum
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, Union, get_args, get_origin

import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch import cli as lightning_cli
from torch import nn, optim
from torch.optim import lr_scheduler

from src.engine.runs.checkpoint import PATHS, checkpoint_errors
from src.engine.system.classes import Tree, argument_types, import_class, parameters_of, project_classes
from src.engine.system.errors import InputError

# Where library classes are looked up, and the base classes allowed there.
LIBRARIES: tuple[tuple[str, Any, tuple[type, ...]], ...] = (
    ("torch.optim.lr_scheduler", lr_scheduler, (lr_scheduler.LRScheduler,)),
    ("torch.optim", optim, (optim.Optimizer,)),
    ("torch.nn", nn, (nn.Module,)),
    ("lightning.pytorch.cli", lightning_cli, (lr_scheduler.ReduceLROnPlateau,)),
)
# Of the engine only these: a class such as Inference would load files named in its arguments.
ENGINE, ENGINE_CLASSES = "src.engine.", "src.engine.training.optim."
PLAIN = (type(None), bool, int, float, str)
ANYTHING = (Any, object)
SEQUENCES = (list, tuple, set, Sequence, Iterable, Collection)
UNKNOWN = "unknown"  # a type that cannot be resolved here, though jsonargparse may resolve it
PATH_VALUE = re.compile(r"[/\\]|^[.~]")  # looks like a path
MAX_DEPTH = 50  # nested classes, lists and dicts
MAX_VALUES = 100_000  # in all lists and dicts; one that is shared counts each time
MAX_INTEGER = 2**31  # larger sizes would use up the memory
# What is read from a checkpoint's configuration: classes of these types, and plain numbers of the Trainer.
CONFIGURED: dict[str, tuple[type, ...]] = {
    "data": (LightningDataModule,),
    "optimizer": (optim.Optimizer,),
    "lr_scheduler": (lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau),
}
TRAINER_KEYS = {"max_epochs", "max_steps", "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps"}
TRAINER_KEYS |= {"accumulate_grad_batches", "gradient_clip_val"}


@dataclass(frozen=True)
class Trust:
    """What the user trusts in a checkpoint.

    Args:
        modules: packages and modules given by `--trust`, whose classes may be used.
        names: every text in the user's own configuration, such as dotted paths of classes and functions.
        paths: whether paths in the checkpoint may be used: it is in one of the user's own run folders.
    """

    modules: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    paths: bool = False

    def covers(self, path: str) -> bool:
        """Whether the user trusts the class at a dotted path."""
        return path in self.names or any(path.startswith(f"{module}.") for module in self.modules)


NO_TRUST = Trust()


def names_in(node: Any) -> Iterator[str]:
    """Every text in a configuration, such as dotted paths of classes and functions."""
    if isinstance(node, str):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from names_in(value)


def checked_class(path: Any, bases: tuple[type, ...], trust: Trust, place: str) -> tuple[str, type]:
    """The class at a dotted path read from a checkpoint, and the path to import it from.

    Args:
        path: dotted path; any type, since it is not trusted.
        bases: the class must be a subclass of one of these; else, or if it is neither of this project, torch or
            Lightning nor trusted by the user, this raises InputError.
        trust: what the user trusts.
        place: the setting, such as `model.net`, for messages.
    """
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")):
        raise InputError(f"{place} names {path!r:.80}, which is not a class")
    cls: Any = None
    is_trusted = trust.covers(path)
    module, _, name = path.rpartition(".")
    if is_trusted:
        cls = import_class(path)
    elif module.partition(".")[0] == "src":
        known = [one for one in project_classes().get(name, []) if not one.startswith(ENGINE) or ENGINE_CLASSES in one]
        if path not in known and len(known) == 1:  # it has moved to another module
            path = known[0]
        cls = import_class(path) if path in known else None
    else:
        for prefix, library, kinds in LIBRARIES:
            found = vars(library).get(name) if cls is None and f"{module}.".startswith(f"{prefix}.") else None
            if isinstance(found, type) and issubclass(found, kinds):
                # Not `path`: a submodule of the library may have something else of that name.
                path, cls = f"{prefix}.{name}", found
    if cls is None and is_trusted:
        raise InputError(f"{place} is {path}, which is not there: install its package, or restore its file")
    if cls is None:
        raise InputError(
            f"{place} is {path}, a class that is not of this project, torch.nn or torch.optim, so it is not loaded;"
            f" if you trust it and the source of the checkpoint, add --trust {module or path}"
        )
    if not isinstance(cls, type) or not issubclass(cls, bases):
        raise InputError(f"{place} is {path}, which is not a {' or '.join(base.__name__ for base in bases)}")
    return path, cls


def checked_spec(
    spec: Any, bases: tuple[type, ...], trust: Trust, place: str, dropped: list[str] | None = None
) -> Tree:
    """A class in a checkpoint with its arguments, checked: plain values, or classes where the type is a class.

    The names of arguments skipped because they are paths are appended to `dropped`. Raises InputError if a class or an
    argument is not allowed.
    """
    return _Check(trust, [] if dropped is None else dropped).spec(spec, bases, place, 0)


def model_arguments(checkpoint: dict[str, Any], trust: Trust = NO_TRUST) -> Tree:
    """Class and arguments of a checkpoint's model, as `checked_spec` checks them; empty if not stored."""
    saved = checkpoint.get("hyper_parameters") or {}
    if not isinstance(saved, dict):
        raise InputError(f"its hyper_parameters are of type {type(saved).__name__}")
    if "_class_path" not in saved:
        return {}
    path, cls = checked_class(saved["_class_path"], (LightningModule,), trust, "model")
    arguments = {name: saved[name] for name in _arguments_of(cls, checkpoint) if name in saved}
    skipped: list[str] = []
    spec = checked_spec({"class_path": path, "init_args": arguments}, (LightningModule,), trust, "model", skipped)
    # Without it, the model would be another one.
    if other := next((name for name in skipped if not PATHS.search(name.rpartition(".")[2])), None):
        raise InputError(f"its {other} looks like a path, which is read only from your own runs in logs/")
    return spec


def _arguments_of(cls: type, checkpoint: dict[str, Any]) -> list[str]:
    """Names of a model's own arguments, and of those that the configuration passes through `**kwargs`.

    The model sets its base class's other arguments itself.
    """
    own, known = inspect.signature(cls).parameters, parameters_of(cls)
    given: Any = known  # if trained without the command line
    if known.keys() - own.keys() and "config" in checkpoint:
        given = ()
        with suppress(yaml.YAMLError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            model = yaml.safe_load(checkpoint["config"])["model"]
            given = {**(model.get("init_args") or {}), **(model.get("dict_kwargs") or {})}.keys()
    return [name for name in known if name in own or name in given]


def allowed_configuration(
    checkpoint: dict[str, Any], own: Tree, trust: Trust, given: str
) -> tuple[Tree, Tree, list[str]]:
    """The configuration of a checkpoint, that of its model, and names of the settings skipped because they are paths.

    Args:
        checkpoint: from `read_checkpoint`.
        own: the whole configuration, if the checkpoint is of the user's own run; else only `run_configuration` is read.
        trust: what the user trusts.
        given: path of the checkpoint, for messages.
    """
    skipped: list[str] = []
    with checkpoint_errors(given):
        model = model_arguments(checkpoint, trust)
        return own or run_configuration(checkpoint, trust, skipped), model, skipped


def run_configuration(checkpoint: dict[str, Any], trust: Trust = NO_TRUST, dropped: list[str] | None = None) -> Tree:
    """Data, optimizer, scheduler, seed, monitor and plain Trainer numbers in the configuration of a checkpoint.

    Callbacks, loggers, profilers, plugins and strategies are ignored. Classes are checked by `checked_spec`.
    """
    text = checkpoint.get("config")
    if text is None:
        return {}
    try:
        tree = yaml.safe_load(text) if isinstance(text, str) else None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError("its config is not YAML of plain values") from error
    if not isinstance(tree, dict):
        raise InputError("its config holds no settings")
    found: Tree = {}
    for key, bases in CONFIGURED.items():
        if tree.get(key) is not None:
            found[key] = checked_spec(tree[key], bases, trust, key, dropped)
    if tree.get("lr_scheduler_interval") in ("step", "epoch"):
        found["lr_scheduler_interval"] = tree["lr_scheduler_interval"]
    if isinstance(name := tree.get("name"), str) and name.isidentifier():
        found["name"] = name
    if type(tree.get("seed_everything")) in (int, bool):
        found["seed_everything"] = tree["seed_everything"]
    trainer, best = (tree[key] if isinstance(tree.get(key), dict) else {} for key in ("trainer", "checkpoint"))
    if isinstance(best.get("monitor", 0), str | None) and best.get("mode") in ("min", "max"):
        found["checkpoint"] = {name: best[name] for name in ("monitor", "mode")}
        if best.get("save_on_train_epoch_end") is True:
            found["checkpoint"]["save_on_train_epoch_end"] = True
    numbers = {name: trainer[name] for name in sorted(TRAINER_KEYS) if type(trainer.get(name)) in (int, float)}
    return {**found, "trainer": numbers} if numbers else found


@dataclass
class _Check:
    trust: Trust
    dropped: list[str]
    left: int = MAX_VALUES

    def spec(self, spec: Any, bases: tuple[type, ...], place: str, depth: int) -> Tree:
        if not isinstance(spec, dict):
            raise InputError(f"{place} is {_kind(spec)}, which is not a class")
        path, cls = checked_class(spec.get("class_path"), bases, self.trust, place)
        given: Tree = {}
        for arguments in (spec.get("init_args") or {}, spec.get("dict_kwargs") or {}):
            if not isinstance(arguments, dict) or not all(isinstance(name, str) for name in arguments):
                raise InputError(f"the arguments of {place} are {_kind(arguments)}, not names and values")
            given |= arguments
        return {"class_path": path, "init_args": self.arguments(cls, given, place, depth)}

    def arguments(self, cls: type, given: Tree, place: str, depth: int) -> Tree:
        parameters = parameters_of(cls)
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        types = argument_types(cls)
        arguments = {}
        for name, value in given.items():
            if name not in parameters and not takes_any:
                raise InputError(f"{place} has an argument {name}, which {cls.__name__} does not take")
            is_untyped = name in parameters and parameters[name].annotation is inspect.Parameter.empty
            hint = types.get(name, Any if is_untyped else UNKNOWN)
            if not self.trust.paths and (_names_path(name, value) or _looks_like_path(name, value, hint)):
                self.dropped.append(f"{place}.{name}")
            else:
                arguments[name] = self.value(value, hint, f"{place}.{name}", depth + 1)
        return arguments

    def value(self, value: Any, hint: Any, place: str, depth: int) -> Any:
        self.left -= 1
        if depth > MAX_DEPTH or self.left < 0:
            raise InputError(f"{place} is nested more than {MAX_DEPTH} levels deep, or has over {MAX_VALUES:,} values")
        options = options_of(hint)
        takes_anything = any(one in ANYTHING or one is UNKNOWN or isinstance(one, TypeVar) for one in options)
        if isinstance(value, dict) and "class_path" in value:
            wanted = tuple(one for one in (*options, *returned_by(hint)) if _is_class_type(one))
            path = str(value["class_path"])
            known = project_classes().get(path.rpartition(".")[2], []) if path.startswith("src.") else []
            if not wanted and takes_anything and not self.trust.names.isdisjoint([path, *known]):  # it may have moved
                wanted = (object,)  # of an argument without a type
            if not wanted:
                raise InputError(f"{place} is a class, but only plain values are allowed")
            return self.spec(value, wanted, place, depth)
        if isinstance(value, str) and value not in self.trust.names and not _takes_text(value, options, takes_anything):
            raise InputError(f"{place} is the text {value!r:.80}, which is not allowed there")
        if isinstance(value, list | tuple):
            hints = [_inner(one, 0) for one in options if one in SEQUENCES or get_origin(one) in SEQUENCES]
            if not hints and not takes_anything:
                raise InputError(f"{place} is a list, but a single value is needed")
            inner = Union[tuple(hints)] if hints else UNKNOWN if UNKNOWN in options else Any  # noqa: UP007
            return [self.value(one, inner, place, depth + 1) for one in value]
        if isinstance(value, dict):
            if not all(isinstance(name, str | int) for name in value):
                raise InputError(f"{place} has a key that is neither text nor a number")
            if cls := dataclass_of(options):
                return self.arguments(cls, value, place, depth)
            hints = [_inner(one, 1) for one in options if one in (dict, Mapping) or get_origin(one) in (dict, Mapping)]
            if not hints and not takes_anything:
                raise InputError(f"{place} holds names and values, but a single value is needed")
            inner = hints[0] if hints else UNKNOWN if UNKNOWN in options else Any
            kept = value if self.trust.paths else {k: v for k, v in value.items() if not _names_path(str(k), v)}
            return {name: self.value(one, inner, f"{place}.{name}", depth + 1) for name, one in kept.items()}
        if type(value) not in PLAIN:
            raise InputError(f"{place} is {_kind(value)}, but only plain values are allowed")
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise InputError(f"{place} is too large: its absolute value is above {MAX_INTEGER:,}")
        return value


def options_of(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type, such as (int, None) for int | None; a type that is still text is UNKNOWN."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(one for part in get_args(hint) for one in options_of(part))
    if get_origin(hint) is Annotated:
        return options_of(get_args(hint)[0])
    return (UNKNOWN if isinstance(hint, str | ForwardRef) else hint,)


def _inner(hint: Any, first: int) -> Any:
    """The type of a container's values, from the type argument `first` on."""
    found = tuple(one for one in get_args(hint)[first:] if one is not Ellipsis)
    return Union[found] if found else Any  # noqa: UP007


def _is_class_type(hint: Any) -> bool:
    plain = (*PLAIN, *SEQUENCES, *ANYTHING, dict, Mapping, bytes, type, Callable)
    return isinstance(hint, type) and hint not in plain and get_origin(hint) is None and not issubclass(hint, Enum)


def dataclass_of(options: tuple[Any, ...]) -> type | None:
    """The dataclass that jsonargparse makes of names and values, if one is among the alternatives of a type."""
    return next((one for one in options if isinstance(one, type) and is_dataclass(one)), None)


def is_callable(hint: Any) -> bool:
    return Callable in (hint, get_origin(hint)) or get_origin(hint) is type


def _takes_text(text: str, options: tuple[Any, ...], takes_anything: bool) -> bool:
    """Whether a place takes a text as it is: jsonargparse would look up names of classes and functions and parse YAML.

    It would also read a file of that name.
    """
    is_name = any(one is UNKNOWN or is_callable(one) or _is_class_type(one) for one in options)
    if is_name and (not text.isidentifier() or Path(text).exists()):
        return False
    if any(isinstance(one, type) and issubclass(one, Enum) and text in one.__members__ for one in options):
        return True
    if str in options or any(get_origin(one) is Literal and text in get_args(one) for one in options):
        return True
    return takes_anything and not _is_mapping(text)


def _is_mapping(text: str) -> bool:
    try:
        return "{" in text or any(isinstance(event, yaml.MappingStartEvent) for event in yaml.parse(text))
    except yaml.YAMLError:
        return False


def _names_path(name: str, value: Any) -> bool:
    texts = value if isinstance(value, list | tuple) else [value]
    return bool(PATHS.search(name)) and any(isinstance(one, str) for one in texts)


def _looks_like_path(name: str, value: Any, hint: Any) -> bool:
    is_path = any(isinstance(one, type) and issubclass(one, PathLike) for one in options_of(hint))
    has_sign = name != "monitor" and isinstance(value, str) and bool(PATH_VALUE.search(value))  # not val/loss
    return has_sign or (is_path and isinstance(value, str))


def _kind(value: Any) -> str:
    return "empty" if value is None else f"of type {type(value).__name__}"


def returned_by(hint: Any) -> tuple[type, ...]:
    """The classes that a function of this type returns."""
    functions = [one for one in options_of(hint) if get_origin(one) is Callable and get_args(one)]
    returned = [one for function in functions for one in options_of(get_args(function)[-1])]
    return tuple(one for one in returned if isinstance(one, type) and one is not type(None))
