"""Errors that a user can fix, each reported as one line."""

import errno
import linecache
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn


class InputError(ValueError):
    """Something given by the user cannot work; the message says what was given and what would work.

    The command line prints it as one line and exits with code 2, without a traceback.
    """


class UnwritableError(InputError):
    """A checkpoint cannot be written."""


def cause_of(error: BaseException) -> BaseException:
    """The error to report: jsonargparse wraps what a constructor raises."""
    cause = error
    while not isinstance(cause, InputError) and isinstance(cause, ValueError) and cause.__cause__:
        cause = cause.__cause__
    return cause


def report(error: BaseException, rank: int = 0) -> NoReturn:
    """Print an error as one line and exit with code 2; of several processes, all but the first say their rank."""
    message = str(error).rpartition("InputError: ")[2]  # an error of a worker process brings its traceback
    line = f"error{f' (rank {rank})' if rank else ''}: {' '.join(message.split())}\n"
    sys.stderr.write(line)  # in one piece: another process may write between a print's text and its newline
    sys.exit(2)


@contextmanager
def constructor_errors() -> Iterator[None]:
    """Turn a ValueError that a class raises in its own constructor into an InputError.

    So networks need nothing but torch: they raise ValueError, and the user sees one line.
    """
    try:
        yield
    except ValueError as error:
        cause = cause_of(error)
        if isinstance(cause, InputError) or not raised_in(cause, "__init__"):
            raise
        raise InputError(str(cause)) from error


def raised_in(error: BaseException, method: str) -> bool:
    """Whether a class raised this ValueError by a `raise` statement in a method, or in a function that it called.

    All that lies between must be of the same package: what a library raises further down is no message for the user.
    """
    frames: list[tuple[FrameType, int]] = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    if type(error) is not ValueError or not frames:
        return False
    innermost, line = frames[-1]
    if not linecache.getline(innermost.f_code.co_filename, line).strip().startswith("raise "):
        return False
    package = _package(innermost)
    for frame, _ in reversed(frames):
        if _package(frame) != package:
            return False
        if frame.f_code.co_name == method:
            return True
    return False


def raised_by_lightning(error: BaseException) -> bool:
    """Whether Lightning itself raised an error, not a class that it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and _package(trace.tb_frame) == "lightning"


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def machine_fault(error: BaseException, folder: Path | None = None) -> str | None:
    """One line for an error of the machine: a full disk, a folder that is gone, a process that died. Else None.

    Args:
        error: what was raised.
        folder: the run folder, if any.
    """
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError) and folder is not None and not folder.is_dir():
        return f"run folder {folder} is gone, deleted or renamed during the run"
    if isinstance(error, UnwritableError):
        return text
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        nameless = "what was printed" if folder is None else "the run folder"
        return f"{error.filename or nameless} cannot be written ({error.strerror}): free some space"
    if isinstance(error, RuntimeError) and (found := re.search(r"DataLoader worker \(pid.*", text)):
        return f"a process that loads data has died, often for lack of memory: {found[0]} Give a smaller num_workers"
    if isinstance(error, RuntimeError) and re.search(r"[Cc]onnection (closed|reset|refused)|Broken pipe|gloo", text):
        return f"another process of this run has ended ({text[:120]})"
    return None
