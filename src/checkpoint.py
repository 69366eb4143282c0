"""Reading a checkpoint without trusting it."""

import inspect
import pickle
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from src.config import Tree, differences, import_class
from src.data.tokenizer import Tokenizer, restore_tokenizer
from src.errors import InputError


def read_checkpoint(given: str) -> dict[str, Any]:
    """A Lightning checkpoint of tensors and plain values; nothing in it is executed.

    Raises:
        InputError: the file is missing, truncated, not a checkpoint, or holds pickled code.
    """
    path = Path(given).expanduser()
    if not path.is_file():
        raise InputError(
            f"--ckpt_path {given}: no such file; give one such as logs/default/version_0/checkpoints/best.ckpt"
        )
    try:
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"--ckpt_path {given} holds more than tensors and plain values, so it is not loaded"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        problem = "is damaged or truncated" if is_zip else "is not a checkpoint"
        raise InputError(
            f"--ckpt_path {given} {problem}; give a .ckpt file that a run of this project wrote"
        ) from error
    keys = checkpoint.keys() if isinstance(checkpoint, dict) else ()
    lacking = [key for key in ("state_dict", "pytorch-lightning_version") if key not in keys]
    if lacking or not isinstance(checkpoint["state_dict"], dict):
        raise InputError(f"--ckpt_path {given} is not a Lightning checkpoint: it has no {(lacking or ['weights'])[0]}")
    return dict(checkpoint)


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
    arguments = model_arguments(checkpoint)
    cls = import_class(arguments.get("class_path", ""))
    if not isinstance(cls, type) or not issubclass(cls, LightningModule):
        raise InputError(f"--ckpt_path {given} does not say which model it is of: load it in Python")
    if not hasattr(cls, ability):
        raise InputError(f"--ckpt_path {given} is of {cls.__name__}, which cannot {ability}: give another checkpoint")
    try:
        model: LightningModule = cls.load_from_checkpoint(given, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"--ckpt_path {given} does not fit the {cls.__name__} of this project: {reason}") from error
    return model.eval()


def read_tokenizer(checkpoint: dict[str, Any], given: str) -> Tokenizer:
    """The tokenizer that a checkpoint's data had.

    Raises:
        InputError: there is none.
    """
    states = [value for key, value in checkpoint.items() if isinstance(value, dict) and not key.endswith("_parameters")]
    state = next((state["tokenizer"] for state in states if "tokenizer" in state), None)
    if state is None:
        raise InputError(f"--ckpt_path {given} holds no tokenizer: give one that was trained on text")
    return restore_tokenizer(state)


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
