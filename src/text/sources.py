"""Finds and reads texts to model: your own files, and one to use without a network."""

import codecs
import glob
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from src.engine.data.download import write_atomically
from src.engine.data.files import find_files, not_utf8, open_utf8, skipped_line
from src.engine.data.loading import announce
from src.engine.system.addresses import local_path
from src.engine.system.errors import InputError

CHUNK = 2**20  # bytes read at a time
FORMAT = "4"  # part of every cache key; increase it when the files change
PROGRESS_DELAY = 2.0  # seconds before a progress bar appears
AS_TABLES = {"json", "jsonl", "ndjson", "csv", "tsv"}  # endings of files that are not plain text


def find_texts(path: str, option: str = "path") -> list[Path]:
    """The files of a path: a file, a folder (its .txt files, without hidden ones) or a glob; sorted.

    `option` is the option of the data that gave the path, for messages.

    Raises:
        InputError: there are none.
    """
    given = local_path(path)
    if given.is_dir():
        skipped: Counter[str] = Counter()
        files = sorted(find_files(given, (".txt",), skipped))
        if skipped:
            rank_zero_info(skipped_line(skipped, ".txt"))
        problem = "no .txt file in this folder; use a glob for other files"
    else:
        names = [str(given)] if given.is_file() else glob.glob(str(given), recursive=True)
        files = sorted(file for name in names if (file := Path(name)).is_file())
        problem = "no such file; give a file, a folder with .txt files, or a glob"
    if not files:
        raise InputError(f"--data.{option} {path}: {problem}")
    if found := sorted({file.name.lower().removesuffix(".gz").rpartition(".")[2] for file in files} & AS_TABLES):
        announce(
            f".{' and .'.join(found)} files are read as they are, with keys, quotes and escapes: for the texts in them"
            " alone, write these to .txt files"
        )
    return files


def python_reference(folder: Path) -> Path:
    """A file with the language reference included in Python, half a million characters; written if missing."""
    from pydoc_data.topics import topics

    content = ("\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n").encode("utf-8")
    path = folder / f"python_reference-{hashlib.sha256(content).hexdigest()[:16]}.txt"
    if not path.exists():
        write_atomically(path, content, "cache_dir")
    return path


def file_stats(files: list[Path]) -> list[list[int]]:
    """Size, time of modification and time of change of each file; Linux and macOS let nobody set the last."""
    return [[one.st_size, one.st_mtime_ns, one.st_ctime_ns] for one in (path.stat() for path in files)]


def known_hash(files: list[Path], stats: list[list[int]], cache_dir: Path) -> tuple[str, int]:
    """`_hash_and_count`, kept in `cache_dir` until a file has another size or time."""
    kept = cache_dir / f"text-{cache_key(*(str(file.resolve()) for file in files))}.json"
    with suppress(OSError, ValueError, LookupError, TypeError):  # there is none, or it is damaged
        known = json.loads(kept.read_text(encoding="utf-8"))
        if known["stats"] == stats:
            return str(known["digest"]), int(known["characters"])
    digest, characters = _hash_and_count(files)
    if file_stats(files) == stats and os.access(cache_dir, os.W_OK):
        facts = {"stats": stats, "digest": digest, "characters": characters}
        write_atomically(kept, json.dumps(facts).encode(), "cache_dir")
    return digest, characters


def _hash_and_count(files: list[Path]) -> tuple[str, int]:
    """SHA-256 and number of characters of a text."""
    digest, characters = hashlib.sha256(), 0
    for text in read_texts(files, "Reading"):
        digest.update(text.encode())
        characters += len(text)
    return digest.hexdigest(), characters


def read_texts(files: list[Path], title: str) -> Iterator[str]:
    """The text of all files in pieces, with a line break between files; with a progress bar."""
    size = sum(path.stat().st_size for path in files)
    with tqdm(total=size, desc=title, unit="B", unit_scale=True, delay=PROGRESS_DELAY, leave=False) as bar:
        for number, path in enumerate(files):
            if number:
                yield "\n"
            try:
                with open_utf8(path) as file:
                    chunks = iter(partial(CallbackIOWrapper(bar.update, file).read, CHUNK), b"")
                    yield from codecs.iterdecode(chunks, "utf-8")
            except UnicodeDecodeError as error:
                raise not_utf8(path) from error
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error


def cache_key(*parts: str) -> str:
    return hashlib.sha256("\0".join((FORMAT, *parts)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
