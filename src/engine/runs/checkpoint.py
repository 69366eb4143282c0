"""Writes checkpoints completely or not at all, and reads them without trusting them."""

import errno
import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.nn.parameter import is_lazy
from torch.serialization import get_unsafe_globals_in_checkpoint

from src.engine.system.batches import plain_labels
from src.engine.system.classes import Tree, differences, with_present_paths
from src.engine.system.errors import FULL, InputError, UnwritableError
from src.engine.system.hooks import hooks
from src.engine.system.interruption import Interrupted

# Arguments that are paths or URLs, by the last word of their name.
PATHS = re.compile(r"(^|_)(path|paths|dir|dirpath|file|files|filename|folder|images|root|url|weights|pretrained)$")
LENGTHS = ("total_steps", "T_max")  # arguments of a schedule that become the run's length if they are None
# Errors that unexpected content of a checkpoint causes in the code that reads it.
CONTENT_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError)
CONTENT_ERRORS += (ValueError,)  # type: ignore[assignment]
GIVE_OWN = "give one that a run of this project wrote"


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under its name only when it is complete on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_checkpoint(checkpoint, Path(path))


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; torch.save stores checksums of its content, which `damage` compares.

    Raises:
        InputError: the checkpoint holds something that could not be loaded again.
        UnwritableError: the checkpoint cannot be written; an older file of that name stays unchanged.
    """
    temporary = path.parent / f".{path.name}-{os.getpid()}"
    try:
        # Do not recreate `checkpoints` if the run has been deleted in the meantime.
        path.parent.mkdir(exist_ok=True, parents=path.parent.name != "checkpoints")
        for left in path.parent.glob(f".{path.name}-*"):  # left by a run that was killed while writing
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        with temporary.open("x+b") as file:  # not by tempfile, which overrides the user's umask
            save_plain(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        shards = shards_of(path)
        (shards.replace_folder if shards else os.replace)(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # first: it takes space that the message says is free
            temporary.unlink(missing_ok=True)
        if isinstance(error.__context__, Interrupted):  # a second Ctrl-C; torch's own error is about what is missing
            raise error.__context__ from None
        if not isinstance(error, OSError | RuntimeError) or system_error(error) is None:
            raise
        raise unwritable(path, size_of(checkpoint), error) from error


def save_plain(content: Any, file: BinaryIO) -> None:
    """Save what `torch.load` reads with `weights_only=True`; raises InputError if the content is something else."""
    try:
        torch.save(content, file)
        file.seek(0)
        found = ", ".join(sorted(get_unsafe_globals_in_checkpoint(file)))
    except (pickle.PickleError, AttributeError, TypeError) as error:
        found = str(error) or type(error).__name__
    if found:
        raise InputError(
            f"the checkpoint cannot be loaded safely ({found}): save only numbers, text, tensors, and lists and dicts"
            " of them; earlier checkpoints are unchanged"
        )


def system_error(error: BaseException) -> OSError | None:
    """The OSError of a failed write, which torch may wrap in an exception of its own."""
    return next((each for each in (error, error.__context__) if isinstance(each, OSError)), None)


def unwritable(path: Path, need: int, error: BaseException) -> UnwritableError:
    """The error that says why a checkpoint of `need` bytes could not be written."""
    run = path.parent.parent
    if not run.is_dir():
        return UnwritableError(f"{path} cannot be written: {run} is gone, deleted or renamed during the run")
    system = system_error(error)
    free = shutil.disk_usage(path.parent if path.parent.is_dir() else run).free
    number = system.errno if system else errno.ENOSPC if free < need else None
    reason = os.strerror(number) if number else str(error)
    if number in FULL:
        known = f" and {free / 2**20:.1f} MB are free" if number == errno.ENOSPC else ""  # not those of a quota
        reason += f": it needs about {need / 2**20:.1f} MB{known}; free some space"
    return UnwritableError(f"{path} cannot be written ({reason}); earlier checkpoints are unchanged")


def size_of(value: Any) -> int:
    """Bytes of all tensors in a tree of dicts and lists."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return value.nbytes if isinstance(value, torch.Tensor) else sum(map(size_of, children))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file or folder, or None. Files that are no zip archives pass."""
    if path.is_dir():
        shards = shards_of(path)
        return shards.shard_damage(path) if shards else "it is a folder"
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                return None
        with zipfile.ZipFile(path) as archive:
            return "its checksum does not match its content" if archive.testzip() else None
    except OSError as error:
        return error.strerror
    except Exception:  # zipfile raises many kinds
        return "it is truncated, or its end is damaged"


def shards_of(path: Path) -> Any:
    """The module that reads sharded checkpoints if a path is one, a folder; else None."""
    found = (reader(path) for reader in hooks("shard_reader")) if path.is_dir() else ()
    return next(filter(None, found), None)


def read_checkpoint(given: str) -> dict[str, Any]:
    """Read a Lightning checkpoint of tensors and plain values; nothing in it is executed.

    Raises:
        InputError: the file is missing, truncated, not a checkpoint, or holds pickled code.
    """
    path = Path(given).expanduser()
    shards = shards_of(path)
    if not path.is_file() and not shards:
        raise InputError(
            f"--ckpt_path {given}: no such file; give one such as logs/default/version_0/checkpoints/best.ckpt"
        )
    if problem := damage(path):
        raise InputError(f"--ckpt_path {given} is damaged or truncated ({problem}); give another one")
    load = shards.read_rest if shards else partial(torch.load, map_location="cpu", weights_only=True, mmap=True)
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns about files that it then refuses
            checkpoint: Any = load(path)
    except InputError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        is_code = isinstance(error, pickle.UnpicklingError)
        problem = "holds more than tensors and plain values, so it is not loaded" if is_code else "is not a checkpoint"
        raise InputError(f"--ckpt_path {given} {problem}; {GIVE_OWN}") from error
    content = dict(checkpoint) if isinstance(checkpoint, dict) else {}
    if missing := [key for key in ("state_dict", "pytorch-lightning_version") if key not in content]:
        raise InputError(f"--ckpt_path {given} is not a Lightning checkpoint: it has no {missing[0]}; {GIVE_OWN}")
    weights = content["state_dict"].items() if isinstance(content["state_dict"], dict) else ()
    if not weights or not all(isinstance(name, str) and isinstance(one, torch.Tensor) for name, one in weights):
        raise InputError(f"--ckpt_path {given} is not a checkpoint of this project: its state_dict has no weights")
    return content


def best_states(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of the ModelCheckpoints in a checkpoint; other entries are ignored."""
    states = checkpoint.get("callbacks")
    found = states.values() if isinstance(states, dict) else ()
    return [one for one in found if isinstance(one, dict) and "best_model_path" in one]


def configuration_files(folder: Path) -> list[Path]:
    """The files of the configurations of a run: the first, and those it was continued with, in order."""
    return sorted(folder.glob("config*.yaml"), key=lambda path: int(re.sub(r"\D", "", path.name) or 0))


def configurations(folder: Path) -> list[str]:
    """The texts of `configuration_files`."""
    return [path.read_text(encoding="utf-8", errors="replace") for path in configuration_files(folder)]


def own_configuration(checkpoint: dict[str, Any], folder: Path | None) -> Tree:
    """The whole configuration of a checkpoint if the user's run folder has the same one; else empty."""
    text = checkpoint.get("config")
    tree = yaml.safe_load(text) if folder and isinstance(text, str) and text in configurations(folder) else None
    return with_present_paths(tree) if isinstance(tree, dict) else {}


def restore_data(checkpoint: dict[str, Any], data: Any) -> None:
    """Give a DataModule its state in a checkpoint, such as tokenizer and labels.

    Raises:
        InputError: the state does not fit, or a tokenizer is missing, which would be loaded from elsewhere.
    """
    if state := checkpoint.get(type(data).__qualname__):
        data.load_state_dict(state)
    elif "tokenizer" in data.hparams:
        raise InputError(f"it has no tokenizer: {type(data).__name__}.state_dict returns none")
    if not all(isinstance(label, str | int | float) for label in plain_labels(data)):
        raise InputError("its labels are neither texts nor numbers")


def names_of(data: Any) -> dict[str, list[str]]:
    """The names on which the meaning of a network's inputs and outputs depends, in their order; empty if not known."""
    found = {}
    for what in ("columns", "labels"):
        # Only tables have columns that are found in the file; elsewhere the user names them.
        is_used = what == "labels" or getattr(data, "input_kind", None) == "table"
        names: Any = getattr(data, what, None) if is_used else None
        names = names.tolist() if hasattr(names, "tolist") else names
        is_list = isinstance(names, list | tuple) and not any(isinstance(one, float) for one in names)
        texts = [str(one) for one in names] if is_list else []
        found[what] = texts if len({*texts}) == len(texts) else []  # else there is one for each sample
    return found


def check_names(checkpoint: dict[str, Any], data: Any) -> None:
    """Raise InputError if a DataModule has other names than that of a checkpoint had, see `names_of`."""
    record = checkpoint.get("record")
    names = record.get("names") if isinstance(record, dict) else None
    for what, now in names_of(data).items():
        old = names.get(what) if isinstance(names, dict) else None
        if not isinstance(old, list) or not old or not now:
            continue
        for number, (was, has) in enumerate(zip_longest(old, now, fillvalue="missing"), start=1):
            if was != has:
                raise InputError(
                    f"the checkpoint was trained with {len(old)} {what}, {type(data).__name__} has {len(now)}: number"
                    f" {number} was {was}, is {has}: restore them, or train anew"
                )


@contextmanager
def checkpoint_errors(given: str, problem: str = "is not a checkpoint of this project") -> Iterator[None]:
    """Turn errors caused by a checkpoint's content into InputErrors that name the checkpoint and the problem."""
    try:
        yield
    except CONTENT_ERRORS as error:
        reason = error if isinstance(error, InputError) else reason_of(error)
        raise InputError(f"--ckpt_path {given} {problem}: {reason}") from error


def reason_of(error: BaseException) -> str:
    """Type and message of an error, in one short line."""
    return " ".join(f"{type(error).__name__} {error}".split())[:300]


def check_fit(checkpoint: dict[str, Any], model: LightningModule, before: Tree, arguments: Tree) -> None:
    """Raise InputError if the weights of a checkpoint do not fit a model; it names the arguments that differ.

    Args:
        checkpoint: from `read_checkpoint`.
        model: the model to load the weights into.
        before: class and arguments of the checkpoint's model.
        arguments: class and arguments of `model`.
    """
    if not model.strict_loading or is_overridden("configure_model", model):
        return  # weights may differ, or do not exist yet
    loaded = {**checkpoint, "state_dict": {**checkpoint["state_dict"]}}
    with suppress(Exception):  # it may need the Trainer
        model.on_load_checkpoint(loaded)  # may add weights, or layers
    weights = model.state_dict()
    if any(is_lazy(value) for value in weights.values()):
        return  # their shapes are not known yet
    own = {name: tuple(value.shape) for name, value in weights.items()}
    saved = {name: tuple(value.shape) for name, value in loaded["state_dict"].items()}
    if own == saved:
        return
    changed = differences(before, arguments, "model") if before else []
    if not changed and own.items() <= saved.items() and is_overridden("setup", model):
        return  # which may build the layers that are missing
    name = next(name for name in (*own, *saved) if own.get(name) != saved.get(name))
    detail = f"{name} is {saved.get(name, 'missing')} in the checkpoint and {own.get(name, 'missing')} in the model"
    cause = f"{' and '.join(changed)} does not fit" if changed else "the model does not fit"
    raise InputError(f"{cause} the weights of the checkpoint: {detail}")


def check_batches(checkpoint: dict[str, Any], saved: Tree, now: Tree) -> None:
    """Raise InputError if the number of steps per epoch has changed, where a continued run depends on it.

    It does in the middle of an epoch, and with a schedule that is as long as the run.
    """
    schedule = (now.get("lr_scheduler") or {}).get("init_args") or {}
    ends_by_steps = (now["trainer"].get("max_steps") or -1) > 0
    is_as_long = not ends_by_steps and any(schedule.get(name, 0) is None for name in LENGTHS)
    counts_steps = is_as_long and now.get("lr_scheduler_interval") == "step"
    known = saved.get("trainer", {}) if counts_steps else {}
    for name, default in {"accumulate_grad_batches": "1", "limit_train_batches": "1.0"}.items():
        # As text: 1 is one batch, 1.0 are all.
        old, new = (default if tree.get(name) is None else repr(tree[name]) for tree in (known, now["trainer"]))
        if name in known and old != new:
            raise InputError(f"--trainer.{name} {new}: the checkpoint has a step schedule, with {old}: give {old}")
    before, after = ((tree.get("data") or {}).get("init_args", {}).get("batch_size") for tree in (saved, now))
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
    is_inside = not progress.get("is_last_batch", True) and progress["current"]["processed"]
    if before is None or after == before:
        return
    if is_inside or (after is not None and counts_steps):
        where = "is in the middle of an epoch" if is_inside else "has a schedule that counts steps,"
        raise InputError(f"--data.batch_size {after}: the checkpoint {where} with batches of {before}: give {before}")


def first_step(checkpoint: dict[str, Any], model: LightningModule) -> int | None:
    """The first step that a continued run logs: later ones were logged after its checkpoint."""
    state = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.state_dict", {})
    if model.automatic_optimization or "_batches_that_stepped" not in state:
        return checkpoint.get("global_step")
    return int(state["_batches_that_stepped"]) + 1  # saved before this batch was counted


def check_unfinished(checkpoint: dict[str, Any], max_epochs: int | None, max_steps: int, test_is_left: bool) -> None:
    """Raise InputError if a checkpoint already has all epochs or steps of the run that continues from it, or more.

    If `test_is_left`, it may have all.
    """
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
    epochs, steps = progress.get("processed", 0), checkpoint.get("global_step", 0)
    if max_epochs is not None and 0 <= max_epochs < epochs + (not test_is_left):
        raise InputError(f"the checkpoint already has {epochs} epochs: give more, as in --max_epochs {2 * epochs}")
    if 0 <= max_steps < steps + (not test_is_left):
        raise InputError(f"the checkpoint already has {steps} steps: give more, as in --trainer.max_steps {2 * steps}")
