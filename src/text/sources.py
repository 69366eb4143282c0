"""Finds texts to model: your own files, and one to use without a network."""

import glob
import hashlib
from collections import Counter
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from src.engine.data.download import write_atomically
from src.engine.data.files import find_files, skipped_line
from src.engine.data.loading import announce
from src.engine.system.addresses import local_path
from src.engine.system.errors import InputError

AS_TABLES = {"json", "jsonl", "ndjson", "csv", "tsv"}  # endings of files that are not plain text


def find_texts(path: str) -> list[Path]:
    """The files of a path: a file, a folder (its .txt files, without hidden ones) or a glob; sorted.

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
        raise InputError(f"--data.path {path}: {problem}")
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
