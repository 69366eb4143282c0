"""Refuses to save values with which a checkpoint could not be loaded."""

import io
import pickle
from typing import Any

import torch

from src.engine.system.errors import InputError


def refuse_unloadable(checkpoint: dict[str, Any]) -> None:
    """Raise InputError, with the key, if something in a checkpoint cannot be loaded with `weights_only=True`."""
    key, value = "", _without_tensors(checkpoint)
    if _loads(value):
        return
    while type(value) in (dict, list, tuple):
        children = value.items() if isinstance(value, dict) else enumerate(value)
        name, value = next((name, one) for name, one in children if not _loads(one))
        key = f"{key}.{name}" if key else str(name)
    raise InputError(
        f"{key} of the checkpoint is of type {type(value).__name__}, which cannot be loaded safely: save only numbers,"
        " text, tensors, and lists and dicts of them; earlier checkpoints are unchanged"
    )


def _without_tensors(value: Any) -> Any:
    if type(value) is dict:
        return {name: _without_tensors(one) for name, one in value.items()}
    if type(value) in (list, tuple):
        return [_without_tensors(one) for one in value]
    return None if isinstance(value, torch.Tensor) else value


def _loads(value: Any) -> bool:
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError):
        return False
    return True
