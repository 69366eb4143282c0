"""Reads sharded checkpoints, folders with shards of every process, without trusting them."""

import hashlib
import io
import json
import os
import pickle
import shutil
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import _nested_dict, filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from src.engine.system.errors import InputError

REST = "meta.pt"  # everything except weights and optimizer state
INDEX = ".metadata"  # torch's index of the shards
CHECKSUMS = "checksums.json"

# All that torch writes to an index, apart from numbers, text and containers; of classes only its own dataclasses.
ALLOWED = {("torch", "Size"), ("torch", "device"), ("torch.serialization", "_get_layout")}
ALLOWED |= {("collections", "OrderedDict"), (metadata.__name__, "_MEM_FORMAT_ENCODING")}
ALLOWED |= {("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype | torch.layout)}
ALLOWED |= {
    (module.__name__, name)
    for module in (metadata, filesystem)
    for name, value in vars(module).items()
    if is_dataclass(value) and value.__module__ == module.__name__
}


def _encoding(kind: Any, name: str) -> Any:
    """The `getattr` with which Python 3.11.0 to 3.11.3 write an enum (Debian 12 has 3.11.2), for torch's enum alone."""
    if kind is metadata._MEM_FORMAT_ENCODING:
        return kind[name]
    raise pickle.UnpicklingError("builtins.getattr is not allowed in an index of shards")


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _encoding
        if module in ("pathlib", "pathlib._local") and name in ("Path", "PosixPath", "PurePosixPath"):
            return super().find_class("pathlib", name)  # Python 3.13 writes the second
        if (module, name) in ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in an index of shards")


class SafeReader(filesystem.FileSystemReader):
    """Reads a sharded checkpoint and checks its index."""

    def read_metadata(self, *_: Any, **__: Any) -> metadata.Metadata:
        return read_index(Path(self.path))


class SafePlanner(DefaultLoadPlanner):
    """Loads only tensors and plain values from shards; torch's planner unpickles anything."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        element = torch.load(value, weights_only=True)
        path = self.mappings[read_item.dest_index.fqn]
        _nested_dict.set_element(self.original_state_dict, path, element)  # type: ignore[attr-defined]


class _SafeEmptyPlanner(SafePlanner, _EmptyStateDictLoadPlanner):
    """Like `SafePlanner`, for checkpoints of unknown content."""


def read_index(folder: Path) -> metadata.Metadata:
    """Read the index of a sharded checkpoint; nothing in it is executed.

    Raises:
        InputError: the index is missing, damaged or has unexpected content.
    """
    try:
        with (folder / INDEX).open("rb") as file:
            index = _IndexUnpickler(file).load()
    except (pickle.UnpicklingError, OSError, EOFError, ValueError, AttributeError, TypeError, LookupError) as error:
        raise InputError(f"{folder / INDEX} is not loaded: {error}") from error
    places = getattr(index, "storage_data", None)
    if not isinstance(index, metadata.Metadata) or not isinstance(places, dict):
        raise InputError(f"{folder / INDEX} is not an index of shards")
    for shard in (getattr(place, "relative_path", None) for place in places.values()):
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise InputError(f"{folder / INDEX} names a file outside of its folder: {shard}")
    return index


def write_checksums(folder: Path) -> None:
    """Flush every file of a sharded checkpoint to the disk and write their SHA-256 sums."""
    sums = {}
    for path in sorted(path for path in folder.iterdir() if path.name != CHECKSUMS):
        sums[path.name] = _digest(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    with (folder / CHECKSUMS).open("w", encoding="utf-8") as file:
        json.dump(sums, file)
        file.flush()
        os.fsync(file.fileno())


def shard_damage(folder: Path) -> str | None:
    """What is wrong with a sharded checkpoint, or None."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        files = {path.name for path in folder.iterdir()} - {CHECKSUMS}
        if missing := sums.keys() ^ files:
            return f"{min(missing)} is {'missing' if min(missing) in sums else 'not part of it'}"
        wrong = [name for name, digest in sums.items() if _digest(folder / name) != digest]
        return f"the checksum of {wrong[0]} does not match its content" if wrong else None
    except (OSError, ValueError, AttributeError) as error:
        return f"{CHECKSUMS} cannot be read ({error})"


def replace_folder(new: Path, path: Path) -> None:
    """Rename a complete checkpoint to `path`; a complete one with suffix .ckpt exists at any time."""
    old = path.with_name(f"{path.stem}-before.ckpt")
    if path.exists():
        _remove(old)  # not before: it may be the only complete one
        path.rename(old)
    new.rename(path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def read_rest(folder: Path) -> dict[str, Any]:
    """A sharded checkpoint without optimizer state, with weights on the meta device (shapes only)."""
    checkpoint: dict[str, Any] = torch.load(folder / REST, map_location="cpu", weights_only=True)
    sizes = {
        name.removeprefix("state_dict."): torch.empty(entry.size, device="meta")
        for name, entry in read_index(folder).state_dict_metadata.items()
        if name.startswith("state_dict.") and isinstance(entry, metadata.TensorStorageMetadata)
    }
    return {**checkpoint, "state_dict": sizes}


def read_whole(folder: Path) -> dict[str, Any]:
    """Read a sharded checkpoint as one dict, as a single process would have saved it.

    Raises:
        InputError: the checkpoint is damaged, or holds more than tensors and plain values.
    """
    read_index(folder)  # torch would wrap its InputError
    state: dict[str, Any] = {}
    try:
        planner = _SafeEmptyPlanner()  # type: ignore[no-untyped-call]
        _load_state_dict(state, SafeReader(folder), planner=planner, no_dist=True)
    except CheckpointException as error:
        causes = [failure[0] for failure in error.failures.values()]
        is_code = any(isinstance(cause, pickle.UnpicklingError) for cause in causes)
        reason = "it holds more than tensors and plain values" if is_code else causes[0]
        raise InputError(f"{folder} is not loaded: {reason}") from error
    checkpoint: dict[str, Any] = torch.load(folder / REST, map_location="cpu", weights_only=True)
    optimizers = sorted((name for name in state if name.startswith("optimizer_")), key=lambda name: int(name[10:]))
    return {
        **checkpoint,
        "state_dict": state["state_dict"],
        "optimizer_states": [_by_number(state[name]) for name in optimizers],
    }


def _by_number(optimizer: dict[str, Any]) -> dict[str, Any]:
    """An optimizer state keyed by parameter number, as torch's optimizers expect, instead of by name."""
    groups = optimizer["param_groups"]
    names = [name for group in groups for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "state": {numbers[name]: value for name, value in optimizer.get("state", {}).items()},
        "param_groups": [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups],
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
