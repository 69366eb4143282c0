"""Addresses such as s3:// and https://, whose files and runs the engine's part `remote` copies."""

import re
from pathlib import Path
from typing import Any

from src.engine.system.errors import InputError
from src.engine.system.hooks import hooks


def is_address(given: Any) -> bool:
    """Whether a text is an address and not a path."""
    return re.match(r"[a-z][a-z0-9+.-]+://", str(given)) is not None


def local_path(given: str | Path) -> Path:
    """The path of a file or folder; what an address names is copied first. Raises InputError if it cannot be read."""
    return at_address(hooks("copy_of"), given)(str(given)) if is_address(given) else Path(given).expanduser()


def local_name(given: str) -> str:
    """The path of the copy of what an address names; any other text as it is, such as `best`."""
    return str(local_path(given)) if is_address(given) else given


def at_address(found: list[Any], given: object) -> Any:
    """What the part for addresses defines. Raises InputError if the part has been removed."""
    if not found:
        raise InputError(f"{given}: this project has no part for addresses: give a path on this machine")
    return found[0]
