"""Downloads with a time limit and a single error class; a file is either complete or missing."""

import hashlib
import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import torch
from filelock import FileLock

from src import ROOT
from src.engine.system.errors import InputError

TIMEOUT = 10.0  # seconds without an answer


class DownloadError(Exception):
    """A download failed; the message gives the reason in one line."""


@contextmanager
def downloading() -> Iterator[None]:
    """Stop downloads that get no answer for `TIMEOUT` seconds.

    Raises:
        DownloadError: a download function of torch or torchvision failed.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    except (RuntimeError, OSError, HTTPException, EOFError) as error:
        reasons = re.findall(r"<urlopen error (.*?)>", str(error))
        raise DownloadError(reasons[-1] if reasons else " ".join(str(error).split())) from error
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Make and lock the folder of a file to download; remove it and its new parents if they stay empty.

    Raises:
        InputError: it cannot be written.
    """
    lock, new_folders = path.with_name(f".{path.name}.lock"), list[Path]()
    held = FileLock(lock)
    try:
        while not held.is_locked:
            new_folders += [parent for parent in path.parents if not parent.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process has removed the folder
                held.acquire()
        yield
    except OSError as error:
        raise unwritable(path.parent, error) from error
    finally:
        with suppress(OSError):
            if held.is_locked:
                lock.unlink(missing_ok=True)
        held.release()
        with suppress(OSError):  # not empty, or never created
            for folder in sorted({*new_folders}, reverse=True):
                folder.rmdir()


def data_folder(given: str | None) -> Path:
    """The folder for downloads: the given one, else `data/` in the project."""
    return ROOT / "data" if given is None else Path(given).expanduser()


def download(url: str, sha256: str, path: Path) -> None:
    """Download a file and verify its checksum; if that fails, nothing is left.

    Raises DownloadError, or InputError if the folder cannot be written.
    """
    with locked_folder(path), downloading():
        if not path.is_file():
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)


def published(url: str, sha256: str, path: Path) -> Path:
    """The path of a published file, downloaded if missing; its checksum is verified in any case.

    Raises DownloadError as `download`, or InputError if the file is not the published one.
    """
    if not path.is_file():
        download(url, sha256, path)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise InputError(f"{path} is not the published file (its SHA-256 differs): remove it, or give --data.path")
    return path


def write_atomically(path: Path, content: bytes, option: str = "data_dir") -> None:
    """Write a temporary file and rename it when complete; `option` is the one that sets the folder, for the error."""
    partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise unwritable(path.parent, error, option) from error
    finally:
        with suppress(OSError):  # already renamed
            partial.unlink()


def unwritable(folder: Path, error: OSError, option: str = "data_dir") -> InputError:
    """The error for a folder that cannot be written."""
    return InputError(f"data folder {folder} cannot be written ({error.strerror}): give another with --data.{option}")
