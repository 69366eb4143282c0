"""Builds the model of a checkpoint from the class and the arguments stored in it."""

from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from src.engine.runs.checkpoint import CONTENT_ERRORS, checkpoint_errors
from src.engine.runs.trust import NO_TRUST, Trust, dataclass_of, is_callable, model_arguments, options_of, returned_by
from src.engine.system.classes import Tree, argument_types, import_class, is_class
from src.engine.system.errors import InputError, constructor_errors
from src.engine.system.hooks import hooks


def load_model(checkpoint: dict[str, Any], ability: str, given: str, trust: Trust = NO_TRUST) -> LightningModule:
    """The model of a checkpoint with its weights, on the CPU, in evaluation mode.

    Args:
        checkpoint: from `read_checkpoint`.
        ability: name of a method that the model must have, such as `generate`.
        given: the path as the user gave it, for messages.
        trust: what the user trusts.

    Raises:
        InputError: the checkpoint does not store how to build its model, or the model has no such method.
    """
    for refuse_folder in hooks("refuse_folder"):
        refuse_folder(given)
    with checkpoint_errors(given):
        spec = model_arguments(checkpoint, trust)
    if not spec:
        raise InputError(f"--ckpt_path {given} does not store the class of its model: load it in Python")
    cls = import_class(spec["class_path"])
    if not hasattr(cls, ability):
        raise InputError(f"--ckpt_path {given} is of {cls.__name__}, which cannot {ability}: give one that can")
    try:
        with constructor_errors():
            found, _ = completed(lambda: build(spec), checkpoint["state_dict"])
        model: LightningModule = found
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
    except InputError:
        raise
    except CONTENT_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"--ckpt_path {given} does not fit the {cls.__name__} of this project: {reason}") from error
    return model.eval()


def completed(make: Callable[[], Any], weights: Tree) -> tuple[Any, bool]:
    """A new module, and whether Lightning's hook `configure_model` has made the rest of its layers.

    A hook that needs a Trainer, such as one that only shards, is left out if all weights have a place without it.
    """
    model = make()
    if not is_overridden("configure_model", model, LightningModule):
        return model, False
    try:
        model.configure_model()
    except Exception:
        model = make()
        if weights.keys() <= model.state_dict().keys():
            return model, False
        raise
    return model, True


def build(spec: Tree) -> Any:
    """Create the object of a spec that `checked_spec` returned; the only names looked up are its classes."""
    return _maker(spec)()


def _maker(spec: Tree) -> partial[Any]:
    cls = import_class(spec["class_path"])
    types = argument_types(cls)
    given = {**(spec.get("dict_kwargs") or {}), **(spec.get("init_args") or {})}
    return partial(cls, **{name: _built(one, types.get(name)) for name, one in given.items()})


def _built(value: Any, hint: Any) -> Any:
    """Convert a configuration value to an argument of this type, as jsonargparse does."""
    options = options_of(hint)
    if is_class(value):
        maker, returned = _maker(value), returned_by(hint)
        # A function that makes an optimizer, or the object itself.
        return maker if isinstance(maker.func, type) and issubclass(maker.func, returned) else maker()
    if isinstance(value, list):
        one = next((one for one in options if get_origin(one) in (list, tuple)), None)
        built = [_built(item, get_args(one)[0] if get_args(one) else None) for item in value]
        return tuple(built) if get_origin(one) is tuple else built
    if isinstance(value, dict):
        if cls := dataclass_of(options):
            return _maker({"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": value})()
        inner = next((get_args(one)[1] for one in options if get_origin(one) is dict), None)
        return {name: _built(item, inner) for name, item in value.items()}
    if isinstance(value, str) and str not in options:
        for one in options:
            if isinstance(one, type) and issubclass(one, Enum | Path):
                return one[value] if issubclass(one, Enum) else one(value)
        if "." in value and any(is_callable(one) for one in options):
            return import_class(value)
    return value
