"""Writing a checkpoint whole or not at all, and reading one without trusting it."""

import errno
import hashlib
import inspect
import os
import pickle
import shutil
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from src.engine.system.classes import Tree, differences, import_class
from src.engine.system.errors import InputError, UnwritableError, constructor_errors

# A checkpoint ends in this and the SHA-256 of all before the last record of its zip archive; that record's comment is
# where zip files may hold such a thing, so torch reads it as any other.
MARK = b"sha256="
COMMENT = len(MARK) + 64
END = 22  # bytes of that record without the comment


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's way to files, where a checkpoint gets its name only when all of it is on the disk, with a checksum.

    Raises:
        UnwritableError: it cannot be written; what was there before is left as it was.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_checkpoint(checkpoint, Path(path))


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint and its checksum.

    Raises:
        UnwritableError: it cannot be written; what was there before is left as it was.
    """
    temporary = None
    try:
        path.parent.mkdir(exist_ok=True)
        for left in path.parent.glob(f".{path.name}-*"):  # of a run that was killed while it wrote
            left.unlink()
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            temporary = Path(file.name)
            torch.save(checkpoint, file)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = MARK + b"0" * 64
        digest = _digest(temporary)
        with temporary.open("r+b") as file:
            file.seek(-64, os.SEEK_END)
            file.write(digest.encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        if system_error(error) is None:
            raise
        _remove(temporary)
        raise unwritable(path, size_of(checkpoint), error) from error
    finally:
        _remove(temporary)


def _remove(path: Path | None) -> None:
    if path is not None:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def system_error(error: BaseException) -> OSError | None:
    """What the system said where something could not be written, which torch wraps in an error of its own."""
    return next((each for each in (error, error.__context__) if isinstance(each, OSError)), None)


def unwritable(path: Path, need: int, error: BaseException) -> UnwritableError:
    """Why a checkpoint of `need` bytes could not be written."""
    run = path.parent.parent
    if not run.is_dir():
        return UnwritableError(f"{path} cannot be written: {run} is gone, deleted or renamed while the run was going")
    system = system_error(error)
    free = shutil.disk_usage(run).free
    number = system.errno if system else errno.ENOSPC if free < need else None
    reason = os.strerror(number) if number else str(error)
    if number in (errno.ENOSPC, errno.EDQUOT):
        reason += f": it needs about {need / 2**20:.1f} MB and {free / 2**20:.1f} MB are free; make room"
    return UnwritableError(f"{path} cannot be written ({reason}); earlier checkpoints are as they were")


def size_of(value: Any) -> int:
    """Bytes of all tensors in a tree of dicts and lists."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(size_of(child) for child in children)


def _digest(path: Path) -> str:
    """SHA-256 of a file but for its last 64 bytes, where it stands."""
    digest = hashlib.sha256()
    left = path.stat().st_size - 64
    with path.open("rb") as file:
        while left and (chunk := file.read(min(left, 2**20))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint as a whole, or None; a file that was written without a checksum passes."""
    if path.is_dir():
        from src.engine.runs.sharded import shard_damage  # a third of a second, which only these pay

        return shard_damage(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(-min(size, END + COMMENT), os.SEEK_END)
            end = file.read()
        if end[-COMMENT : -COMMENT + len(MARK)] == MARK:
            return None if _digest(path).encode() == end[-64:] else "its checksum is not that of its content"
        if end[-END:-18] == b"PK\5\6" and end[-2:] == b"\0\0":
            return None  # a zip archive without a comment, such as torch.save writes
        return "it is truncated, or its end is damaged" if zip_start(path) else None
    except OSError as error:
        return error.strerror


def is_sharded(path: Path) -> bool:
    """Whether a path is a sharded checkpoint: a folder with what Lightning keeps beside the shards."""
    if not path.is_dir():
        return False
    from src.engine.runs.sharded import REST  # lazy import: a third of a second

    return (path / REST).is_file()


def zip_start(path: Path) -> bool:
    """Whether a file begins as a zip archive does."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def read_checkpoint(given: str) -> dict[str, Any]:
    """A Lightning checkpoint of tensors and plain values; nothing in it is executed.

    Raises:
        InputError: the file is missing, truncated, not a checkpoint, or holds pickled code.
    """
    path = Path(given).expanduser()
    if not path.is_file() and not is_sharded(path):
        raise InputError(
            f"--ckpt_path {given}: no such file; give one such as logs/default/version_0/checkpoints/best.ckpt"
        )
    if problem := damage(path):
        raise InputError(f"--ckpt_path {given} is damaged or truncated ({problem}); give another one")
    try:
        checkpoint: Any
        if path.is_dir():
            from src.engine.runs.sharded import read_rest

            checkpoint = read_rest(path)
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"--ckpt_path {given} holds more than tensors and plain values, so it is not loaded; give one that a run of"
            " this project wrote"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        problem = "is damaged or truncated" if path.is_dir() or zip_start(path) else "is not a checkpoint"
        raise InputError(
            f"--ckpt_path {given} {problem}; give a .ckpt file that a run of this project wrote"
        ) from error
    keys = checkpoint.keys() if isinstance(checkpoint, dict) else ()
    lacking = [key for key in ("state_dict", "pytorch-lightning_version") if key not in keys]
    if lacking or not isinstance(checkpoint["state_dict"], dict):
        raise InputError(
            f"--ckpt_path {given} is not a Lightning checkpoint: it has no {(lacking or ['weights'])[0]}; give"
            " one that a run of this project wrote"
        )
    return dict(checkpoint)


def refuse_shards(given: str) -> None:
    """Raise InputError where a checkpoint is one that only FSDP2 loads."""
    if is_sharded(Path(given).expanduser()):
        raise InputError(
            f"--ckpt_path {given} is sharded: give --config configs/strategy/fsdp2.yaml too, or make one file of it"
            f" with python -m src.export --format checkpoint --ckpt_path {given} --output whole.ckpt"
        )


def model_arguments(checkpoint: dict[str, Any]) -> Tree:
    """Class and arguments of the model a checkpoint was written for, as far as it carries them."""
    saved = dict(checkpoint.get("hyper_parameters") or {})
    cls = import_class(saved.get("_class_path", ""))
    if cls is None:
        return {}
    arguments = {name: saved[name] for name in inspect.signature(cls).parameters if name in saved}
    return {"class_path": saved["_class_path"], "init_args": arguments}


def run_configuration(checkpoint: dict[str, Any]) -> Tree:
    """The configuration of the run that wrote a checkpoint; empty where it was written without the command line."""
    text = checkpoint.get("config")
    tree = yaml.safe_load(text) if isinstance(text, str) else None
    return tree if isinstance(tree, dict) else {}


def load_model(checkpoint: dict[str, Any], ability: str, given: str) -> LightningModule:
    """The model of a checkpoint with its weights, on the CPU, ready to use.

    Args:
        checkpoint: as read.
        ability: name of a method that its task must have, such as `generate`.
        given: the path as the user gave it.

    Raises:
        InputError: the checkpoint does not say how its model is built, or its task lacks that method.
    """
    refuse_shards(given)
    arguments = model_arguments(checkpoint)
    cls = import_class(arguments.get("class_path", ""))
    if not isinstance(cls, type) or not issubclass(cls, LightningModule):
        raise InputError(f"--ckpt_path {given} does not say which model it is of: load it in Python")
    if not hasattr(cls, ability):
        raise InputError(f"--ckpt_path {given} is of {cls.__name__}, which cannot {ability}: give another checkpoint")
    try:
        with constructor_errors():
            model: LightningModule = cls.load_from_checkpoint(given, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"--ckpt_path {given} does not fit the {cls.__name__} of this project: {reason}") from error
    return model.eval()


def check_fit(checkpoint: dict[str, Any], model: LightningModule, arguments: Tree) -> None:
    """Make sure that the weights of a checkpoint fit a model before anything is run.

    Args:
        checkpoint: as read.
        model: the model that is to take the weights.
        arguments: class and arguments the model was built with.

    Raises:
        InputError: they do not; the message names the arguments that differ from the checkpoint's.
    """
    if not model.strict_loading or is_overridden("configure_model", model):
        return  # the weights may differ, or are not made yet
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    saved = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    if own == saved:
        return
    changed = differences(model_arguments(checkpoint), arguments, "model")
    name = next(name for name in (*own, *saved) if own.get(name) != saved.get(name))
    detail = f"{name} is {saved.get(name, 'missing')} in the checkpoint and {own.get(name, 'missing')} in the model"
    cause = f"{' and '.join(changed)} does not fit" if changed else "the model does not fit"
    raise InputError(f"{cause} the weights of the checkpoint: {detail}")


def check_batches(checkpoint: dict[str, Any], saved: Tree, now: Tree) -> None:
    """Make sure that an epoch that is half over goes on with batches of the size it began with.

    Raises:
        InputError: it would not.
    """
    before, after = ((tree.get("data") or {}).get("init_args", {}).get("batch_size") for tree in (saved, now))
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
    is_inside = not progress.get("is_last_batch", True) and progress["current"]["processed"]
    if is_inside and before is not None and after != before:
        raise InputError(
            f"--data.batch_size {after}: the checkpoint is in the middle of an epoch with batches of {before}; leave"
            " it out, or go on from a checkpoint at an epoch's end"
        )


def check_unfinished(checkpoint: dict[str, Any], max_epochs: int | None, max_steps: int) -> None:
    """Make sure that a run that goes on from a checkpoint has something left to do.

    Raises:
        InputError: the checkpoint has as many epochs or steps as the run is to have.
    """
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
    epochs, steps = progress.get("processed", 0), checkpoint.get("global_step", 0)
    if max_epochs is not None and 0 <= max_epochs <= epochs:
        raise InputError(f"the checkpoint has {epochs} epochs already: give more, as in --max_epochs {2 * epochs}")
    if 0 <= max_steps <= steps:
        raise InputError(f"the checkpoint has {steps} steps already: give more, as in --trainer.max_steps {2 * steps}")
