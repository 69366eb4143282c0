"""Network arguments: stored in checkpoints as plain values, and checked against the data."""

import inspect
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from numbers import Integral
from typing import Any

from torch import nn

from src.engine.system.classes import Tree, is_class
from src.engine.system.errors import InputError

INSTANTIATOR = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}  # for load_from_checkpoint


def store_arguments(model: Any, data: Any, tree: Tree) -> None:
    """Log and save the arguments of model and DataModule as in the configuration, so that checkpoints can be loaded.

    Their `hparams` keep what is not plain, such as a path, a transform or a function that makes the optimizer.
    """
    plain = {model: _use_plain(model, tree["model"], {})}
    if data is not None and data.hparams:
        plain[data] = _use_plain(data, tree["data"], plain[model])
    saved = [(module, one, deepcopy(_plain(module.hparams))) for module, one in plain.items()]
    model.on_save_checkpoint = partial(_save_plain, model.on_save_checkpoint, saved)


def _use_plain(module: Any, spec: Tree, logged: Tree) -> Tree:
    """Set the plain arguments as hyperparameters, and return them; not to be logged if they contradict `logged`."""
    plain = {"_class_path": spec["class_path"], **deepcopy(spec.get("init_args", {}))}
    for name, value in plain.items():
        if is_class(value):
            _use_rebuilt(value, getattr(module, name, None))
    plain |= INSTANTIATOR
    # What is not plain, and what its constructor has changed.
    own = {name: value for name, value in module.hparams.items() if not (name.startswith("_") or is_class(value))}
    is_consistent = all(logged.get(name, value) == value for name, value in plain.items() if name != "_class_path")
    module.save_hyperparameters(plain, logger=is_consistent)
    module.hparams.update(own)
    return plain


def _use_rebuilt(spec: Tree, module: Any) -> None:
    """Give a network, and those in its arguments, the arguments that build them without their files."""
    spec["init_args"] = {**(spec.get("init_args") or {}), **rebuild_arguments(module)}
    for name, value in spec["init_args"].items():
        if is_class(value):
            _use_rebuilt(value, getattr(module, name, None))


def _save_plain(hook: Callable[[Tree], None], saved: list[tuple[Any, Tree, Tree]], checkpoint: Tree) -> None:
    """Save arguments as given: the constructor applies its changes again when a checkpoint is loaded."""
    for module, plain, before in saved:
        names = {*inspect.signature(type(module)).parameters, *plain}  # of all arguments: some have default objects
        own = {name: value for name, value in module.hparams.items() if name not in names}
        own |= {name: value for name, value in _plain(module.hparams).items() if before.get(name, _MISSING) != value}
        checkpoint[module.CHECKPOINT_HYPER_PARAMS_KEY] = {**plain, **own}
    kept = {name: checkpoint.get(name) for name in ("config", "record")}
    hook(checkpoint)
    if taken := next((name for name, one in kept.items() if one is not None and checkpoint.get(name) is not one), None):
        raise InputError(f"on_save_checkpoint sets checkpoint[{taken!r}], which the run needs: use another name")


def describe_arguments(task: type, **arguments: Any) -> dict[str, Any]:
    """A task's arguments as LightningCLI stores them; modules that cannot be described as plain values are left out."""
    described: dict[str, Any] = dict(INSTANTIATOR)
    if task.__module__ != "__main__" and "<locals>" not in task.__qualname__:  # else no other program finds the class
        described["_class_path"] = f"{task.__module__}.{task.__qualname__}"
    for name, value in arguments.items():
        if not isinstance(value, nn.Module):
            described[name] = value
        elif (description := _describe_module(value)) is not None:
            described[name] = description
    return described


def rebuild_arguments(module: Any) -> dict[str, Any]:
    """Arguments that a checkpoint stores instead of those the network was built with.

    A network that was built from files lists in its attribute `rebuild` the arguments that build it without them. A
    subclass may not take all of them.
    """
    if not (rebuild := getattr(module, "rebuild", {})):
        return {}
    known = inspect.signature(type(module)).parameters
    takes_all = any(one.kind == one.VAR_KEYWORD for one in known.values())
    return {name: value for name, value in rebuild.items() if takes_all or name in known}


def keep_sources(now: Tree, before: Tree, stored: Tree, module: Any) -> None:
    """Restore the original arguments of networks in a configuration, which those of a checkpoint have replaced.

    Args:
        now: class and arguments of the model `module`, changed in place.
        before: the same, in the configuration of the checkpoint's run.
        stored: the same, in the checkpoint.
    """
    for name, spec in (now.get("init_args") or {}).items():
        specs = [spec, *((tree.get("init_args") or {}).get(name) for tree in (before, stored))]
        if all(map(is_class, specs)) and specs[0]["class_path"] == specs[1]["class_path"]:
            own, given, rebuilt = ((one.get("init_args") or {}) for one in specs)
            names = [one for one in rebuild_arguments(getattr(module, name, None)) if one in given]
            kept = {one: given[one] for one in names if own.get(one) == rebuilt.get(one)}  # else it was changed
            spec["init_args"] = {**own, **kept}
            keep_sources(spec, specs[1], specs[2], getattr(module, name, None))  # those in its arguments


def _describe_module(module: nn.Module) -> dict[str, Any] | None:
    """Class and arguments of a module that keeps its arguments as plain attributes, else None."""
    cls = type(module)
    init_args = {}
    rebuild = rebuild_arguments(module)
    for name, parameter in inspect.signature(cls).parameters.items():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and not hasattr(module, name) and cls.__module__.startswith("torch."):
            continue  # torch's modules keep all arguments except deprecated ones
        value = rebuild.get(name, getattr(module, name, _MISSING))
        if not named or not _is_plain(value):
            return None
        init_args[name] = list(value) if isinstance(value, tuple) else value
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}


def check_limits(net: nn.Module, data: Any) -> None:
    """Raise InputError if the data has more or other tokens, longer texts or a longer context than the network."""
    modules = net.modules() if getattr(data, "own_tokens", False) else ()
    if other := next((one for one in modules if getattr(one, "pretrained", None) and hasattr(one, "vocab_size")), None):
        problem = f"{type(other).__name__} was trained with tokens of its own, {type(data).__name__} has others"
        raise InputError(f"{problem}: give another network")
    for name, limiting in (("max_length", "block_size"), ("vocab_size", "vocab_size"), ("block_size", "block_size")):
        have, limit = getattr(data, name, None), getattr(net, limiting, None)
        # Other types: names of a network of one's own, which may mean another thing.
        if isinstance(have, Integral) and isinstance(limit, Integral) and int(have) > int(limit) > 0:
            way = f"--data.{name} {limit}" if name != "vocab_size" else "data that fits, or leave the network's out"
            problem = f"does not fit {type(net).__name__}, which has {limiting} {limit}"
            raise InputError(f"{name} {have} of the data {problem}: give {way}")


_MISSING = object()


def _plain(values: Any) -> Tree:
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(_is_plain(item) for item in value)
    if type(value) is dict:
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return type(value) in (type(None), bool, int, float, str)  # not an enum of texts or numbers
