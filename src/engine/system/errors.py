"""Errors that a user can fix, each reported as one line."""

import dis
import errno
import re
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import FrameType, TracebackType
from typing import NoReturn

GUIDE = "see docs/your_own.md"
FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk, of a user's share of it
UNUSABLE_PATH = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)
MEMORY = re.compile("(out of|allocate)( shared)? memory")  # of a GPU; of a CPU; between processes
# What torch's errors say, and the line for each; {} is what the pattern has found. Without ^ a search of a long text
# would take minutes.
FAULTS = {
    "^.*(NVIDIA driver|No CUDA GPUs|no kernel image|busy or unavailable).*": "the GPU cannot be used ({}): update its"
    " driver or take another one, or train on the CPU with CUDA_VISIBLE_DEVICES= before the command",
    "^.* does not have a deterministic implementation": "{}: give --trainer.deterministic warn, which repeats"
    " everything else",
    r"DataLoader worker \(pid[^.]*": "a process that loads data has died, often for lack of memory: {}. Give a smaller"
    " num_workers",
    "^.*([Cc]onnection (closed|reset|refused)|Broken pipe|gloo).*": "another process of this run has ended ({})",
}


class InputError(ValueError):
    """Invalid input: what was given and what would work. Commands print it as one line and exit with code 2."""


class SampleError(InputError):
    """A DataModule's `prepare` or `read_file` cannot use an input; the error goes to its row or to the client."""


class UnwritableError(InputError):
    """A checkpoint cannot be written."""


def check_least(least: float, **given: float) -> None:
    """Raise InputError if an argument is below the least that works."""
    for name, value in given.items():
        if not value >= least:
            raise InputError(f"{name} {value} is too small: give at least {least}")


def cause_of(error: BaseException) -> BaseException:
    """The original error: jsonargparse wraps errors of constructors."""
    cause = error
    while not isinstance(cause, InputError) and isinstance(cause, ValueError) and cause.__cause__:
        cause = cause.__cause__
    return cause


def report(error: BaseException, rank: int = 0) -> NoReturn:
    """Print an error as one line, with the rank unless it is 0, and exit with code 2."""
    message = str(error).rpartition("InputError: ")[2]  # an error of a worker process contains its traceback
    if not message:
        *_, (frame, _) = walk_tb(error.__traceback__)
        message = f"{type(error).__name__} in {frame.f_code.co_qualname}"
        if isinstance(error, NotImplementedError):
            message = f"{frame.f_code.co_qualname} is not implemented: name a subclass that has it"
    line = f"error{f' (rank {rank})' if rank else ''}: {' '.join(message.split())}\n"
    sys.stderr.write(line)  # one write: print() could mix lines of several processes
    sys.exit(2)


@contextmanager
def constructor_errors() -> Iterator[None]:
    """Turn a ValueError that a class raises in its constructor into an InputError: networks do not know the engine."""
    try:
        yield
    except ValueError as error:
        cause: BaseException | None = error
        while isinstance(cause, ValueError) and not isinstance(cause, InputError):
            if raised_in(cause, "__init__"):
                raise InputError(str(cause)) from error
            cause = cause.__cause__  # jsonargparse wraps what a constructor raises
        raise


def raised_in(error: BaseException, method: str) -> bool:
    """Whether a `raise` statement in this method of a class, or in a function it called, raised this ValueError.

    All frames in between must be of the same package. A library's class counts only if jsonargparse created it: an
    error of a torch layer inside the user's network needs its traceback.
    """
    traces: list[TracebackType] = []
    trace = error.__traceback__
    while trace is not None:
        traces.insert(0, trace)
        trace = trace.tb_next
    if type(error) is not ValueError or not traces:
        return False
    code = traces[0].tb_frame.f_code
    if dis.opname[code.co_code[traces[0].tb_lasti]] != "RAISE_VARARGS":  # Python itself raised it, as in unpacking
        return False
    packages = [_package(one.tb_frame) for one in traces]
    for number, one in enumerate(traces):
        if packages[number] != packages[0]:
            return False
        if one.tb_frame.f_code.co_name == method:
            return not is_library(code.co_filename) or packages[number + 1 : number + 2] == ["jsonargparse"]
    return False


def is_library(file: str) -> bool:
    """Whether a source file is part of Python or of an installed package."""
    return any(Path(file).is_relative_to(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))


def raised_by_lightning(error: BaseException) -> bool:
    """Whether Lightning itself raised an error, not code that it called."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return bool(frames) and _package(frames[-1]) == "lightning"


def raised_in_restore(error: BaseException) -> bool:
    """Whether an error was raised while Lightning restored a checkpoint."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__) if _package(frame) == "lightning"]
    return any(re.match("_?(restore|resume|load_combined)", frame.f_code.co_name) for frame in frames)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def machine_fault(error: BaseException, folder: Path | None = None) -> str | None:
    """A one-line message for a system error (full disk, deleted run folder, dead process), or None for other errors."""
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError) and folder is not None and not folder.is_dir():
        return f"run folder {folder} is gone, deleted or renamed during the run"
    if isinstance(error, UnwritableError):
        return text
    if isinstance(error, OSError) and error.errno in FULL:
        unnamed = "standard output" if folder is None else "the run folder"
        return f"{error.filename or unnamed} cannot be written ({error.strerror}): free some space"
    if isinstance(error, OSError) and error.errno in UNUSABLE_PATH and error.filename:
        return f"{str(error.filename)[:200]} cannot be used ({error.strerror}): give another path"
    if isinstance(error, RuntimeError) and text == "Could not determine home directory.":
        return "a path begins with ~ and the name of no user: give it in full, or as ./~name"
    first, *more = str(error).strip().splitlines() or ["MemoryError"]
    reason = more[-1] if more and first.startswith("Caught ") else first  # in a process that loads data
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and MEMORY.search(reason)):
        if "shared" in reason:
            return f"too little shared memory: give num_workers 0, or docker run --shm-size 8g ({reason[:120]})"
        return f"too little memory: start again with a smaller batch_size ({reason[:120]})"
    for pattern, line in FAULTS.items() if isinstance(error, RuntimeError) else ():
        if found := re.search(pattern, text):
            return line.format(found[0][:120])
    return None
