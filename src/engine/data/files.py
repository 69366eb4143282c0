"""Finds files in folders, and opens texts."""

import codecs
import gzip
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from tqdm import tqdm

from src.engine.system.errors import InputError

S = TypeVar("S")
T = TypeVar("T")

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as in torchvision


def find_files(folder: Path, suffixes: tuple[str, ...], skipped: Counter[str] | None = None) -> Iterator[Path]:
    """The files with some suffixes in a folder and its subfolders, sorted, without hidden ones and macOS's `__MACOSX`.

    Links are followed, except to a folder that contains them. `skipped` counts everything else, by its suffix.
    """
    skipped = Counter() if skipped is None else skipped
    unreadable = "folders that cannot be read"
    for parent, subfolders, names in os.walk(folder, onerror=lambda _: skipped.update([unreadable]), followlinks=True):
        visible = sorted(name for name in subfolders if not is_hidden(name))
        loops = {name for name in visible if _is_loop(Path(parent, name))}
        skipped.update(["looping links"] * len(loops))
        subfolders[:] = [name for name in visible if name not in loops]
        for name in sorted(name for name in names if not is_hidden(name)):
            file = Path(parent, name)
            if not file.is_file():
                skipped["broken links" if file.is_symlink() else "special files"] += 1
            elif name.lower().endswith(suffixes):
                yield file
            else:
                skipped[file.suffix.lower() or name] += 1


def in_threads(function: Callable[[S], T], values: Sequence[S], title: str = "Reading files") -> list[T]:
    """The result of a function for each value, with a progress bar after two seconds."""
    found = []
    with ThreadPoolExecutor() as pool, tqdm(desc=title, total=len(values), delay=2.0, leave=False) as bar:
        for first in range(0, len(values), 10_000):  # all at once would take a kilobyte for each
            for one in pool.map(function, values[first : first + 10_000]):
                found.append(one)
                bar.update()
    return found


def _is_loop(folder: Path) -> bool:
    return folder.is_symlink() and folder.resolve() in [parent.resolve() for parent in folder.parents]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or macOS's `__MACOSX`."""
    return name.startswith(".") or name == "__MACOSX"


def skipped_line(skipped: Mapping[str, int], wanted: str) -> str:
    """What `find_files` skipped, as one line."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items()))
    return f"Skipped files that are not {wanted}: {kinds}"


def file_error(path: Path, problem: Exception, prefix: str = "") -> str:
    """Why a file cannot be used."""
    if isinstance(problem, FileNotFoundError):
        return "no such file"
    if path.is_file() and not path.stat().st_size:
        return "the file is empty"
    detail = " ".join(str(problem).split()).replace(str(path), "the file").replace("'the file'", "the file")
    return f"{prefix}{detail[:200] or type(problem).__name__}"


def open_utf8(path: Path) -> BinaryIO:
    """A text file, opened after its byte order mark if there is one; .gz is unpacked. InputError if it is UTF-16."""
    file = _unpacked(path)
    start = file.peek(4096)[:4096]  # a pipe cannot be rewound
    has_mark = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    halves = sorted((start[::2].count(0), start[1::2].count(0)))  # blanks and line breaks have one in either of them
    if has_mark or start.count(0) > len(start) / 4 or (halves[0] == 0 and halves[1] > len(start) / 100):
        file.close()
        raise InputError(f"{path} seems to be UTF-16: save it as UTF-8")
    file.read(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
    return file


def _unpacked(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def not_utf8(path: Path) -> InputError:
    """The error for a text file that is not UTF-8, with its first wrong byte."""
    offset = 0
    with _unpacked(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = f"byte {offset + error.start} is 0x{line[error.start]:02x}"
                return InputError(
                    f"{path} is not UTF-8: {byte}, in line {number}; it may be Windows-1252: save it as UTF-8"
                )
            offset += len(line)
    return InputError(f"{path} is not UTF-8: save it as UTF-8")
