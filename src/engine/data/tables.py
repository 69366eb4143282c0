"""Reads columns of CSV, TSV, JSON Lines and Parquet files, and of the first three with .gz.

Rows count from 1, without the header and empty lines.
"""

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import chain, islice
from pathlib import Path
from typing import Any

from src.engine.data.files import not_utf8, open_utf8
from src.engine.data.loading import announce
from src.engine.system.errors import InputError

Batch = tuple[Any, ...]  # the values of some rows: for each column an Arrow array, or a list

STREAM_BYTES = 2**24  # block size when streaming a table; a row must fit into a block
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
UNREADABLE = (ValueError, EOFError, zlib.error)  # what Python raises for a file of another format or an incomplete one
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def stream_columns(path: Path, columns: dict[str, str]) -> Iterator[tuple[Any, ...]]:
    """The values of some columns of a table, row by row; memory does not grow with the table.

    `columns` are their names, and what an error says to give if one is missing.
    """
    for batch in read_batches(path, list(columns), list(columns.values()), STREAM_BYTES):
        yield from rows_of(batch)


def rows_of(batch: Batch) -> Iterator[tuple[Any, ...]]:
    return zip(*(one if isinstance(one, list) else one.to_pylist() for one in batch), strict=True)


def read_batches(path: Path, columns: Sequence[str], options: Sequence[str], block_size: int) -> Iterator[Batch]:
    """The values of columns, in batches of rows; `options` say what to give if one is missing."""
    import pyarrow as pa
    from pyarrow import parquet

    suffix = suffix_of(path)
    if suffix not in TABLES:
        raise InputError(f"{path}: give a .csv, .tsv, .jsonl or .parquet file")
    batches: Any
    try:
        if suffix == ".parquet":
            table = parquet.ParquetFile(path)
            names, batches = table.schema_arrow.names, table.iter_batches(columns=list(columns))
        elif suffix in (".csv", ".tsv"):
            reader = _open_csv(path, columns, block_size)
            names, batches = reader.schema.names, _count_lines(reader, path)
        else:
            rows = _json_rows(path)
            head = list(islice(rows, 1))  # the first row names the columns
            names, batches = list(head[0] if head else columns), chain(head, rows)
        for column, option in zip(columns, options, strict=True):
            if column not in names:
                raise InputError(f"{path} has no column {column}, it has {', '.join(names)}: give {option}")
            if names.count(column) > 1:
                raise InputError(f"{path} has several columns {column}: rename all but one")
        for batch in batches:
            if isinstance(batch, dict):  # a row of JSON
                yield tuple([batch.get(column)] for column in columns)
            else:
                batch.validate(full=True)  # texts of Parquet may not be UTF-8
                yield tuple(batch.column(column) for column in columns)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (pa.ArrowException, OSError, *UNREADABLE) as error:
        if isinstance(error, UnicodeDecodeError) or "invalid utf8" in str(error).lower():
            if suffix == ".parquet":
                raise InputError(f"{path} has texts that are not UTF-8: write it again as UTF-8") from error
            raise not_utf8(path) from error
        if "Empty CSV" in str(error):
            raise InputError(f"{path} is empty or has no rows") from error
        # pyarrow counts the header as a row.
        reason = re.sub(r"Row #(\d+)", lambda found: f"row {int(found[1]) - 1}", " ".join(str(error).split()))
        if "straddling" in reason:  # a reader that tries larger blocks looks for this word
            reason = f"a row is longer than {block_size:,} bytes, as after a stray quotation mark (straddling)"
        raise InputError(f"{path} is not a {suffix} file that can be read: {reason}") from error


def _open_csv(path: Path, columns: Sequence[str], block_size: int) -> Any:
    """A reader of batches, in which every column is text, so that a label 01 stays 01 and NA is not null."""
    import pyarrow as pa
    from pyarrow import csv

    own = "\t" if suffix_of(path) == ".tsv" else ","
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
    return csv.open_csv(
        path,
        csv.ReadOptions(use_threads=False, block_size=block_size),  # with threads, errors do not name the row
        # In TSV no quoting: a text may begin with a quotation mark.
        csv.ParseOptions(delimiter=own, quote_char=False if own == "\t" else '"', newlines_in_values=own == ","),
        csv.ConvertOptions(default_column_type=pa.string()),
    )


def _count_lines(batches: Any, path: Path) -> Iterator[Any]:
    """The batches; in the end reports how many rows have several lines, as after a stray quotation mark."""
    from pyarrow import compute

    count = first = start = 0
    for batch in batches:
        found = []
        for column in batch.columns:
            characters = column.buffers()[-1]
            content = characters.to_pybytes() if characters else b""  # faster to search than the texts
            if b"\n" in content or b"\r" in content:
                found.append(compute.match_substring_regex(column, "[\n\r]"))
        if found and (rows := compute.indices_nonzero(reduce(compute.or_, found)).to_pylist()):
            count, first = count + len(rows), first or start + rows[0] + 1
        start += batch.num_rows
        yield batch
    if count:
        announce(f"{path}: rows that span several lines: {count:,}, first row {first}; check its quotation marks")


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


def suffix_of(path: Path) -> str:
    """The suffix of a file's name in lower case, without .gz."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()
