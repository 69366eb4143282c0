"""Reads tables of texts or of paths, and of their labels."""

import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from src.engine.data.tables import STREAM_BYTES, Batch, read_batches, rows_of
from src.engine.data.texts import Texts
from src.engine.system.addresses import at_address, is_address, local_path
from src.engine.system.errors import InputError
from src.engine.system.hooks import hooks

Row = tuple[str, str]  # text or path, and label
Columns = tuple[Texts, list[str]]  # the same by column

HEAD_BYTES = 2**20  # block size for the names of the columns
OPTIONS = ("text_column", "label_column")


def read_table(path: str, text_column: str, label_column: str, options: Sequence[str] = OPTIONS) -> list[Row]:
    """Texts and labels from a .csv, .tsv, .jsonl or .parquet file.

    Args:
        path: the file, or its address.
        text_column: column of texts, or of paths.
        label_column: column of labels.
        options: the options that set these columns, for error messages.

    Raises:
        InputError: the file is missing or has another format, a column is missing, or a text or label is empty.
    """
    return list(zip(*read_columns(path, text_column, label_column, options), strict=True))


def read_columns(path: str, text_column: str, label_column: str, options: Sequence[str] = OPTIONS) -> Columns:
    """`read_table` as two columns, in little more memory than the size of the file."""
    import pyarrow as pa

    file = local_path(path)
    if not file.is_file():
        is_folder = " is a folder: give a .csv, .tsv, .jsonl or .parquet file"
        raise InputError(f"{path}{is_folder if file.is_dir() else ': no such file'}")
    wanted = (text_column, label_column), [f"--data.{option}" for option in options]
    largest = 2**31 - 1  # bytes; a compressed file may hold more than its size
    whole = largest if file.suffix == ".gz" else min(max(file.stat().st_size + 1, HEAD_BYTES), largest)
    for block_size in (HEAD_BYTES, STREAM_BYTES, whole):
        try:
            texts, labels = _columns(path, read_batches(file, *wanted, block_size), wanted[0])
            break
        except InputError as error:
            if "straddling" not in str(error) or block_size > STREAM_BYTES:
                raise  # else a row is longer than a block
    pa.default_memory_pool().release_unused()
    if not labels:
        raise InputError(f"{path} has no rows")
    return texts, labels


def _columns(path: str, batches: Iterator[Batch], names: Sequence[str]) -> Columns:
    data, lengths, labels = bytearray(), array("q"), list[str]()
    for batch in batches:
        if _add_strings(batch, data, lengths, labels):
            continue
        for text, label in rows_of(batch):
            row = len(labels) + 1
            for value, column in zip((text, label), names, strict=True):
                if value is None or value != value or not str(value).strip():
                    raise InputError(f"{path}, row {row}: column {column} is empty; fill it or remove the row")
                if isinstance(value, list | dict | bytes):
                    raise InputError(f"{path}, row {row}: column {column} is {str(value)[:40]}, not text or a number")
            encoded = str(text).encode()
            data += encoded
            lengths.append(len(encoded))
            labels.append(sys.intern(str(label).strip()))
    return Texts(data, np.frombuffer(lengths, np.int64)), labels


def _add_strings(batch: Batch, data: bytearray, lengths: "array[int]", labels: list[str]) -> bool:
    """Add the rows of a batch without making strings of them; false if one is empty, or a column is not of strings."""
    import pyarrow as pa
    from pyarrow import compute

    strings = {pa.string(): np.int32, pa.large_string(): np.int64}
    if any(isinstance(one, list) or one.type not in strings or one.null_count or not len(one) for one in batch):
        return False
    texts, coded = batch[0], batch[1].dictionary_encode()
    found = [sys.intern(name.strip()) for name in coded.dictionary.to_pylist()]
    _, offsets, characters = texts.buffers()
    ends = np.frombuffer(offsets, strings[texts.type])[texts.offset :][: len(texts) + 1].astype(np.int64)
    if not all(found) or not np.diff(ends).all() or compute.any(compute.utf8_is_space(texts)).as_py():
        return False
    data += memoryview(characters)[ends[0] : ends[-1]]
    lengths.frombytes(np.diff(ends).tobytes())
    labels += map(found.__getitem__, coded.indices.to_pylist())
    return True


def local_paths(names: Sequence[str], table: str) -> list[Path]:
    """The paths of files that a table names, relative to the table or as addresses; those at addresses are copied.

    Raises:
        InputError: a file cannot be read.
    """
    found: list[Path] = [Path(table).expanduser().parent / name for name in names]
    address = next(filter(is_address, (table, *names)), None)
    return at_address(hooks("copies_of"), address)(names, table) if address else found
