"""Reads columns of CSV, TSV, JSON Lines and Parquet files."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.engine.system.errors import InputError

Row = tuple[str, str]  # text or path, and label

STREAM_BYTES = 2**24  # block size when streaming a table; a row must fit into a block
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


def read_table(path: str, text_column: str, label_column: str, option: str = "text_column") -> list[Row]:
    """Texts and labels from a .csv, .tsv, .jsonl or .parquet file.

    Args:
        path: the file.
        text_column: column of texts, or of paths.
        label_column: column of labels.
        option: the option that sets `text_column`, for error messages.

    Raises:
        InputError: the file is missing or has another format, a column is missing, or a text or label is empty; rows
            count from 1, without the header.
    """
    table = _read_columns(path)
    for column, name in ((text_column, option), (label_column, "label_column")):
        if column not in table.column_names:
            raise InputError(
                f"{path} has no column {column}, it has {', '.join(table.column_names)}: give --data.{name}"
            )
        if table.column_names.count(column) > 1:
            raise InputError(f"{path} has several columns {column}: rename all but one")
    if not table.num_rows:
        raise InputError(f"{path} has no rows")
    rows = []
    pairs = zip(table[text_column].to_pylist(), table[label_column].to_pylist(), strict=True)
    for number, (text, label) in enumerate(pairs, start=1):
        for value, column in ((text, text_column), (label, label_column)):
            if value is None or not str(value).strip():
                raise InputError(f"{path}, row {number}: column {column} is empty; fill it or remove the row")
        rows.append((str(text), str(label).strip()))
    return rows


def stream_columns(path: Path, columns: Sequence[str], option: str = "text_column") -> Iterator[tuple[Any, ...]]:
    """The values of some columns of a table, row by row; memory does not grow with the table.

    Raises:
        InputError: the file cannot be read, or a column is missing; the message names `option`.
    """
    with _open_table(path, STREAM_BYTES) as (names, batches):
        if missing := [column for column in columns if column not in names]:
            raise InputError(f"{path} has no column {missing[0]}, it has {', '.join(names)}: give --{option}")
        for batch in batches:
            yield from zip(*(batch.column(column).to_pylist() for column in columns), strict=True)


def _read_columns(path: str) -> Any:
    import pyarrow as pa

    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"{path}: no such file")
    block_size = min(max(file.stat().st_size + 1, 2**20), 2**31 - 1)  # a row must fit into a block
    with _open_table(file, block_size) as (names, batches):
        found = list(batches)
        return pa.Table.from_batches(found) if found else pa.table({name: [] for name in names})


@contextmanager
def _open_table(file: Path, block_size: int) -> Iterator[tuple[list[str], Iterator[Any]]]:
    """Column names of a table, and its rows in batches."""
    import pyarrow as pa
    from pyarrow import csv, json, parquet

    suffix = file.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            parsing = csv.ParseOptions(newlines_in_values=True)
            if suffix == ".tsv":  # no quoting: a text may begin with a quotation mark
                parsing = csv.ParseOptions(delimiter="\t", quote_char=False)
            # One thread: otherwise errors do not name the row.
            reading = csv.ReadOptions(use_threads=False, block_size=block_size)
            with csv.open_csv(file, reading, parsing) as head:
                names = head.schema.names
            # Read every column as text, so that a label 01 stays 01 and NA is not null.
            converting = csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=False
            )
            with csv.open_csv(file, reading, parsing, converting) as rows:
                yield names, rows
        elif suffix in (".jsonl", ".ndjson"):
            with json.open_json(file, json.ReadOptions(block_size=block_size)) as rows:
                yield rows.schema.names, rows
        elif suffix == ".parquet":
            with parquet.ParquetFile(file) as table:
                yield table.schema_arrow.names, table.iter_batches()
        else:
            raise InputError(f"{file}: give a .csv, .tsv, .jsonl or .parquet file")
    except InputError:
        raise
    except (pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
        # pyarrow counts the header as a row.
        reason = re.sub(r"Row #(\d+)", lambda found: f"row {int(found[1]) - 1}", " ".join(str(error).split()))
        raise InputError(f"{file} is not a {suffix} file that can be read: {reason}") from error
