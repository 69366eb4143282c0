"""Refuses to save values with which a checkpoint could not be loaded."""

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch

from src.engine.system.errors import InputError

PLAIN = (type(None), bool, int, float, str)


def refuse_unloadable(checkpoint: Any) -> None:
    """Raise InputError, with the key, if something in a checkpoint cannot be loaded with `weights_only=True`."""
    for key, value in _odd(checkpoint):
        if not _loads(value):
            raise InputError(
                f"{key} of the checkpoint is of type {type(value).__name__}, which cannot be loaded safely: save only"
                " numbers, text, tensors, and lists and dicts of them; earlier checkpoints are unchanged"
            )


def _odd(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of all that is neither a tensor nor plain, also in the attributes of a state dict."""
    if type(value) in (dict, OrderedDict, list, tuple):
        for name, one in value.items() if isinstance(value, dict) else enumerate(value):
            place = f"{key}.{name}" if key else str(name)
            yield from _odd(name, place)
            yield from _odd(one, place)
        yield from _odd(getattr(value, "__dict__", None), key)
    elif not isinstance(value, torch.Tensor) and type(value) not in PLAIN:
        yield key, value


def _loads(value: Any) -> bool:
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError):
        return False
    return True
