"""Writing a checkpoint whole or not at all, and reading one without trusting it."""

import errno
import hashlib
import inspect
import os
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from src.engine.runs.trust import NO_TRUST, Trust, build, checked_class, checked_spec
from src.engine.system.classes import Tree, differences, import_class
from src.engine.system.errors import InputError, UnwritableError, constructor_errors

# What is taken of a checkpoint's configuration: a class of these kinds each, and plain numbers of the Trainer.
CONFIGURED: dict[str, tuple[type, ...]] = {
    "data": (LightningDataModule,),
    "optimizer": (torch.optim.Optimizer,),
    "lr_scheduler": (torch.optim.lr_scheduler.LRScheduler, torch.optim.lr_scheduler.ReduceLROnPlateau),
}
OF_TRAINER = {"max_epochs", "max_steps", "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps"}
OF_TRAINER |= {"accumulate_grad_batches", "gradient_clip_val"}
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
    if not checkpoint["state_dict"] or not all(
        isinstance(one, torch.Tensor) for one in checkpoint["state_dict"].values()
    ):
        raise InputError(f"--ckpt_path {given} is not a checkpoint of this project: its state_dict is not of weights")
    return dict(checkpoint)


def refuse_shards(given: str) -> None:
    """Raise InputError where a checkpoint is one that only FSDP2 loads."""
    if is_sharded(Path(given).expanduser()):
        raise InputError(
            f"--ckpt_path {given} is sharded: give --config configs/strategy/fsdp2.yaml too, or make one file of it"
            f" with python -m src.export --format checkpoint --ckpt_path {given} --output whole.ckpt"
        )


def model_arguments(checkpoint: dict[str, Any], trust: Trust = NO_TRUST) -> Tree:
    """Class and arguments of the model of a checkpoint; empty if it does not say.

    Raises:
        InputError: it names something that it may not.
    """
    saved = checkpoint.get("hyper_parameters") or {}
    if not isinstance(saved, dict):
        raise InputError(f"its hyper_parameters are of type {type(saved).__name__}")
    if "_class_path" not in saved:
        return {}
    cls = checked_class(saved["_class_path"], (LightningModule,), trust, "model")
    arguments = {name: saved[name] for name in inspect.signature(cls).parameters if name in saved}
    return checked_spec(
        {"class_path": saved["_class_path"], "init_args": arguments}, (LightningModule,), trust, "model"
    )


def own_configuration(checkpoint: dict[str, Any], folder: Path | None) -> Tree:
    """The whole configuration of a checkpoint, if it is one of those in a run folder of the user; else empty."""
    text = checkpoint.get("config")
    own = [path.read_text(encoding="utf-8") for path in folder.glob("config*.yaml")] if folder else []
    tree = yaml.safe_load(text) if isinstance(text, str) and text in own else None
    return tree if isinstance(tree, dict) else {}


def run_configuration(checkpoint: dict[str, Any], trust: Trust = NO_TRUST, dropped: list[str] | None = None) -> Tree:
    """What a checkpoint says of data, optimizer and schedule, and the plain numbers of its Trainer.

    Callbacks, loggers, profilers, plugins and strategies are not taken from a checkpoint.

    Args:
        checkpoint: as read.
        trust: what the user vouches for.
        dropped: gets the settings that are left out, because they are paths.

    Raises:
        InputError: it names something that it may not.
    """
    text = checkpoint.get("config")
    if text is None:
        return {}
    try:
        tree = yaml.safe_load(text) if isinstance(text, str) else None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError("its config is no YAML of plain values") from error
    if not isinstance(tree, dict):
        raise InputError("its config holds no settings")
    found: Tree = {}
    for key, bases in CONFIGURED.items():
        if tree.get(key) is not None:
            found[key] = checked_spec(tree[key], bases, trust, key, dropped)
    if tree.get("lr_scheduler_interval") in ("step", "epoch"):
        found["lr_scheduler_interval"] = tree["lr_scheduler_interval"]
    if type(tree.get("seed_everything")) in (int, bool):
        found["seed_everything"] = tree["seed_everything"]
    trainer = tree.get("trainer")
    numbers = {name: value for name in sorted(OF_TRAINER) if type(value := (trainer or {}).get(name)) in (int, float)}
    return {**found, "trainer": numbers} if isinstance(trainer, dict) and numbers else found


@contextmanager
def not_of_this_project(given: str) -> Iterator[None]:
    """Name the checkpoint in the error for something in it that cannot be used."""
    try:
        yield
    except InputError as error:
        raise InputError(f"--ckpt_path {given} is not a checkpoint of this project: {error}") from error
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise InputError(f"--ckpt_path {given} is not a checkpoint of this project: {reason}") from error


def load_model(checkpoint: dict[str, Any], ability: str, given: str, trust: Trust = NO_TRUST) -> LightningModule:
    """The model of a checkpoint with its weights, on the CPU, ready to use.

    Args:
        checkpoint: as read.
        ability: name of a method that its task must have, such as `generate`.
        given: the path as the user gave it.
        trust: what the user vouches for.

    Raises:
        InputError: the checkpoint does not say how its model is built, or its task lacks that method.
    """
    refuse_shards(given)
    with not_of_this_project(given):
        spec = model_arguments(checkpoint, trust)
    if not spec:
        raise InputError(f"--ckpt_path {given} does not say which model it is of: load it in Python")
    cls = import_class(spec["class_path"])
    if not hasattr(cls, ability):
        raise InputError(f"--ckpt_path {given} is of {cls.__name__}, which cannot {ability}: give another checkpoint")
    try:
        with constructor_errors():
            model: LightningModule = build(spec)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"--ckpt_path {given} does not fit the {cls.__name__} of this project: {reason}") from error
    return model.eval()


def check_fit(checkpoint: dict[str, Any], model: LightningModule, before: Tree, arguments: Tree) -> None:
    """Make sure that the weights of a checkpoint fit a model before anything is run.

    Args:
        checkpoint: as read.
        model: the model that is to take the weights.
        before: class and arguments of the checkpoint's model.
        arguments: those that the model was built with.

    Raises:
        InputError: they do not; the message names the arguments that differ from the checkpoint's.
    """
    if not model.strict_loading or is_overridden("configure_model", model):
        return  # the weights may differ, or are not made yet
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    saved = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    if own == saved:
        return
    changed = differences(before, arguments, "model")
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
