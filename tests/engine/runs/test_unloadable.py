"""What a checkpoint could not be loaded with is refused when it is saved."""

import datetime
import functools
import io
import pickle
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from enum import Enum, IntEnum
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from src.engine.runs.checkpoint import read_checkpoint, write_checkpoint
from src.engine.runs.fsdp2 import FSDP2Strategy
from src.engine.system.errors import InputError, UnwritableError


class Colour(Enum):
    RED = 1


class Level(IntEnum):
    LOW = 1


class Table(dict[str, int]):
    pass


class Own:
    def __init__(self) -> None:
        self.number = 1


def with_attribute(value: object) -> OrderedDict[str, int]:
    found = OrderedDict(a=1)
    found.attribute = value  # type: ignore[attr-defined]  # as the `_metadata` of a state dict
    return found


ODD: dict[str, Callable[[], Any]] = {
    "a number of NumPy": lambda: np.float64(1),
    "an array": lambda: np.ones(2),
    "a function": lambda: torch.nn.functional.relu,
    "a lambda": lambda: lambda: 1,
    "a partial function": lambda: functools.partial(print),
    "a class": lambda: Own,
    "an object": Own,
    "an object that cannot be pickled": Lock,
    "an enum": lambda: Colour.RED,
    "an enum of numbers": lambda: Level.LOW,
    "a path": lambda: Path("a"),
    "a duration": lambda: datetime.timedelta(1),
    "a dict of one's own": lambda: Table(a=1),
    "a dict with defaults": lambda: defaultdict(list),
    "a deque": lambda: deque([1]),
    "a frozen set": lambda: frozenset([1]),
    "a network": lambda: nn.Linear(1, 1),
    "a key": lambda: {Colour.RED: 1},
    "a part of a key": lambda: {(1, Colour.RED): 1},
    "an attribute of a dict": lambda: with_attribute(Colour.RED),
    "deep inside": lambda: [{"a": ({"b": np.float32(1)},)}],
}
FINE: dict[str, Any] = {
    "plain": [None, True, 1, 2**100, 1.5, float("inf"), "ä", (1, [2])],
    "types": [torch.float32, torch.device("cpu"), torch.Size([1])],
    "Python's": [{1}, 1j, b"a", Counter("ab")],
    "tensors": [torch.ones(3)[::2], nn.Parameter(torch.ones(1))],
    "attributes": with_attribute(1),
}
REFUSED = r"cannot be loaded safely \(.+\): save only numbers, text, tensors, and lists and dicts of them; earlier"


def checkpoint(extra: Any) -> dict[str, Any]:
    weights = {"weight": torch.ones(2)}
    return {"state_dict": weights, "pytorch-lightning_version": "2.6.6", "callbacks": {"Mine": {"state": extra}}}


@pytest.mark.parametrize("name", ODD)
def test_what_could_not_be_loaded_is_not_saved_and_the_last_checkpoint_stays(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    write_checkpoint(checkpoint(1), folder / "last.ckpt")
    with pytest.raises(InputError, match=REFUSED):
        write_checkpoint(checkpoint(ODD[name]()), folder / "last.ckpt")
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(str(folder / "last.ckpt"))["callbacks"]["Mine"]["state"] == 1


@pytest.mark.parametrize("name", ODD)
def test_shards_are_not_written_either(name: str, tmp_path: Path) -> None:
    state = {"step": torch.ones(1), "odd": ODD[name]()}
    for more in (checkpoint(state), {"optimizer_states": [{"state": {"weight": state}}]}, {"state_dict": state}):
        with pytest.raises(InputError, match=REFUSED):
            FSDP2Strategy().save_checkpoint({**checkpoint(1), **more}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FINE)
def test_all_that_torch_loads_is_saved(name: str, tmp_path: Path) -> None:
    write_checkpoint(checkpoint(FINE[name]), tmp_path / "last.ckpt")
    read_checkpoint(str(tmp_path / "last.ckpt"))


def loads(value: Any) -> bool:
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError):
        return False
    return True


def test_nothing_else_is_refused() -> None:
    assert [name for name in ODD if loads(ODD[name]())] == []
    assert all(map(loads, FINE.values()))


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnwritableError, match=r"run is gone, deleted or renamed during the run"):
        write_checkpoint({}, tmp_path / "run" / "checkpoints" / "last.ckpt")
