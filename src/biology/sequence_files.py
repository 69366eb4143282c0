"""Reads sequences from FASTA, FASTQ and tables, each also compressed with gzip."""

from collections.abc import Collection, Iterator
from itertools import chain, islice
from typing import NamedTuple

from src.engine.data.files import open_utf8
from src.engine.data.labelled_tables import read_table
from src.engine.data.labels import check_not_parts
from src.engine.data.tables import TABLES, UNREADABLE, suffix_of
from src.engine.system.addresses import local_path
from src.engine.system.errors import InputError

FASTA = (".fa", ".fasta", ".fna", ".faa")
FASTQ = (".fq", ".fastq")


class Record(NamedTuple):
    """A sequence with its file and row, and its label; "" if it has none."""

    place: str
    sequence: str
    label: str = ""


def read_records(
    path: str, sequence_column: str, label_column: str, labelled: bool | Collection[str] = False
) -> Iterator[Record]:
    """The sequences of a file, in order; those of FASTA and FASTQ have no labels, unless `labelled`.

    Args:
        path: the file; or a folder of them, whose names are the labels of the sequences in them.
        sequence_column: a table's column of sequences.
        label_column: a table's column of labels.
        labelled: whether the second half of a FASTA record's lines is its label; given letters, if it consists of them.
    """
    file = local_path(path)
    if not file.exists():
        raise InputError(f"{path}: no such file")
    if file.is_dir():
        files = sorted(one for one in file.iterdir() if one.is_file() and not one.name.startswith("."))
        if not files:
            raise InputError(f"{path} has no files of sequences; give one file per class")
        names = [one.with_suffix("").stem if one.suffix == ".gz" else one.stem for one in files]
        check_not_parts(names, f"--data.path {path}")
        for one, name in zip(files, names, strict=True):
            records = read_records(str(one), sequence_column, sequence_column)
            yield from (record._replace(label=name) for record in records)
        return
    suffix, number = suffix_of(file), 0
    if suffix in TABLES:
        rows = enumerate(read_table(path, sequence_column, label_column, ("sequence_column", "label_column")), start=1)
        yield from (Record(f"{path}, row {number}", *row) for number, row in rows)
        return
    if suffix not in (*FASTA, *FASTQ):
        raise InputError(f"{path}: give {', '.join((*FASTA, *FASTQ, *TABLES))}, or one of them and .gz")
    try:
        with open_utf8(file) as opened:
            lines = (line.decode("utf-8") for line in opened)
            found = _fasta(lines, labelled) if suffix in FASTA else _fastq(lines)
            for number, (name, *row) in enumerate(found, start=1):
                yield Record(f"{path}, record {number} ({name[:40]})", *row)
    except InputError:
        raise
    except (OSError, *UNREADABLE) as error:
        raise InputError(f"{path}, record {number + 1}: {' '.join(str(error).split())}") from error
    if not number:
        raise InputError(f"{path} has no sequences")


def _fasta(lines: Iterator[str], labelled: bool | Collection[str]) -> Iterator[tuple[str, str, str]]:
    name, parts = None, list[str]()
    for line in chain(map(str.strip, lines), ">"):
        if line.startswith(">"):
            half = len(parts) // 2
            if labelled is True and len(parts) % 2:
                raise ValueError("it has an odd number of lines: give as many lines of labels as of the sequence")
            if labelled is not True and not _are_labels(parts[:half], parts[half:], labelled or ()):
                half = len(parts)
            if name is not None:
                yield name, "".join(parts[:half]), "".join(parts[half:])
            name, parts = line[1:].strip(), []
        elif line and line[0] not in "#;":  # not a comment
            if name is None:
                raise ValueError(f"it begins with {line[:20]!a}, not with >")
            parts.append(line)


def _are_labels(parts: list[str], others: list[str], letters: Collection[str]) -> bool:
    """Whether the second half of the lines of a record consists of labels only, one per letter of the first."""
    return [*map(len, parts)] == [*map(len, others)] and {*"".join(others)} <= {*letters} != set()


def _fastq(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    while four := [line.strip() for line in islice(lines, 4)]:
        if not any(four):
            continue  # blank lines, as at the end
        if len(four) < 4 or four[0][:1] != "@" or four[2][:1] != "+" or len(four[1]) != len(four[3]):
            raise ValueError("it is not @name, sequence, + and as many qualities, in four lines; it may be incomplete")
        yield four[0][1:], four[1], ""
