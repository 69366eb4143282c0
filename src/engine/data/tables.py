"""Reads columns of CSV, TSV, JSON Lines and Parquet files, and of the first three with .gz.

Rows count from 1, without the header and empty lines.
"""

import json
import re
import sys
import zlib
from array import array
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from src.engine.data.files import not_utf8, open_utf8, suffix_of
from src.engine.data.loading import announce
from src.engine.data.texts import Texts
from src.engine.system.addresses import local_path
from src.engine.system.errors import InputError

Row = tuple[str, str]  # text or path, and label
Columns = tuple[Texts, list[str]]  # the same by column
Batch = tuple[Any, ...]  # the values of some rows: for each column an Arrow array, or a list

HEAD_BYTES = 2**20  # block size for the names of the columns
STREAM_BYTES = 2**24  # block size when streaming a table; a row must fit into a block
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
UNREADABLE = (ValueError, EOFError, zlib.error)  # what Python raises for a file of another format or an incomplete one
OPTIONS = ("text_column", "label_column")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


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
            texts, labels = _columns(path, _batches(file, *wanted, block_size), wanted[0])
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
        for text, label in _rows(batch):
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


def stream_columns(path: Path, columns: dict[str, str]) -> Iterator[tuple[Any, ...]]:
    """The values of some columns of a table, row by row; memory does not grow with the table.

    Args:
        path: the table.
        columns: their names, and what an error says to give if one is missing.
    """
    for batch in _batches(path, list(columns), list(columns.values()), STREAM_BYTES):
        yield from _rows(batch)


def _rows(batch: Batch) -> Iterator[tuple[Any, ...]]:
    return zip(*(one if isinstance(one, list) else one.to_pylist() for one in batch), strict=True)


def _batches(path: Path, columns: Sequence[str], options: Sequence[str], block_size: int) -> Iterator[Batch]:
    """The values of columns, in batches of rows; `options` say what to give if one is missing."""
    import pyarrow as pa

    suffix = suffix_of(path)
    if suffix not in TABLES:
        raise InputError(f"{path}: give a .csv, .tsv, .jsonl or .parquet file")
    try:
        if suffix in (".csv", ".tsv"):
            names, batches = _csv(path, columns, block_size)
        else:
            names, batches = _parquet(path, columns) if suffix == ".parquet" else _json(path, columns)
        for column, option in zip(columns, options, strict=True):
            if column not in names:
                raise InputError(f"{path} has no column {column}, it has {', '.join(names)}: give {option}")
            if names.count(column) > 1:
                raise InputError(f"{path} has several columns {column}: rename all but one")
        yield from batches
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (pa.ArrowException, OSError, *UNREADABLE) as error:
        if isinstance(error, UnicodeDecodeError) or "invalid utf8" in str(error).lower():
            raise not_utf8(path) from error
        if "Empty CSV" in str(error):
            raise InputError(f"{path} is empty or has no rows") from error
        # pyarrow counts the header as a row.
        reason = re.sub(r"Row #(\d+)", lambda found: f"row {int(found[1]) - 1}", " ".join(str(error).split()))
        raise InputError(f"{path} is not a {suffix} file that can be read: {reason}") from error


Table = tuple[list[str], Iterator[Batch]]  # names of all columns, and the values of those that are wanted


def _parquet(path: Path, columns: Sequence[str]) -> Table:
    from pyarrow import parquet

    table = parquet.ParquetFile(path)
    return table.schema_arrow.names, _from_batches(table.iter_batches(columns=list(columns)), columns)


def _csv(path: Path, columns: Sequence[str], block_size: int) -> Table:
    import pyarrow as pa
    from pyarrow import csv

    own = "\t" if suffix_of(path) == ".tsv" else ","
    # In TSV no quoting: a text may begin with a quotation mark.
    parsing = csv.ParseOptions(delimiter=own, quote_char=False if own == "\t" else '"', newlines_in_values=own == ",")
    # One thread: otherwise errors do not name the row.
    reading = csv.ReadOptions(use_threads=False, block_size=block_size)
    with open_utf8(path) as file:
        header = file.readline().decode("utf-8", "replace").strip()
    if header.startswith("sep="):
        raise InputError(f"{path} begins with {header}, which is not CSV: remove this line, and separate by commas")
    others = [name for mark, name in SEPARATORS.items() if mark in header]
    if own not in header and others and not set(columns) & {header.strip('"')}:
        raise InputError(
            f"{path} seems to be separated by {others[0]}, not {SEPARATORS[own]}: its first line is {header};"
            f" separate it by {SEPARATORS[own]}"
        )
    # Every column is text, so that a label 01 stays 01 and NA is not null.
    converting = csv.ConvertOptions(default_column_type=pa.string())
    batches = csv.open_csv(path, reading, parsing, converting)
    names: list[str] = batches.schema.names
    return names, _from_batches(_count_lines(batches, columns, path) if set(columns) <= {*names} else batches, columns)


def _from_batches(batches: Any, columns: Sequence[str]) -> Iterator[Batch]:
    for batch in batches:
        batch.validate(full=True)  # texts of Parquet may not be UTF-8
        yield tuple(batch.column(column) for column in columns)


def _count_lines(batches: Any, columns: Sequence[str], path: Path) -> Iterator[Any]:
    """The batches; in the end reports how many rows have several lines, as after a stray quotation mark."""
    from pyarrow import compute

    count = first = start = 0
    for batch in batches:
        found = [one for one in map(batch.column, columns) if _has_line_break(one)]
        has_line = [compute.match_substring_regex(one, "[\n\r]") for one in found]
        if has_line and (rows := compute.indices_nonzero(reduce(compute.or_, has_line)).to_pylist()):
            count, first = count + len(rows), first or start + rows[0] + 1
        start += batch.num_rows
        yield batch
    if count:
        announce(f"{path}: rows that span several lines: {count:,}, first row {first}; check its quotation marks")


def _has_line_break(column: Any) -> bool:
    characters = column.buffers()[-1]
    content = characters.to_pybytes() if characters else b""  # faster to search than the texts
    return b"\n" in content or b"\r" in content


def _json(path: Path, columns: Sequence[str]) -> Table:
    rows = _json_rows(path)
    head = list(islice(rows, 1))  # the first row names the columns
    names = list(head[0] if head else columns)
    return names, (tuple([row.get(column)] for column in columns) for row in chain(head, rows))


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    # Not pyarrow's reader, which turns texts that look like dates into dates and counts rows from 0.
    with open_utf8(path) as file:
        for number, line in enumerate(filter(bytes.strip, file), start=1):
            text = line.decode("utf-8")
            try:
                row = json.loads(text)
                "".join(map(str, row.values())).encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"row {number} is not valid Unicode: it has half of a surrogate pair") from error
            except AttributeError as error:
                raise ValueError(f"row {number} is {line[:40]!r}, not an object with columns") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"row {number}: {error}") from error
            yield row
