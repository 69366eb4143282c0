"""FASTA, FASTQ and tables of sequences, as files and in a folder."""

import gzip
import random
from pathlib import Path

import pytest

from src.biology.sequence_files import read_records
from src.engine.system.errors import InputError
from tests.conftest import write

FASTQ = "@one\nACG\n+one\nIII\n@two\nAC\n+\n@@\n"


def records(path: Path | str, labelled: bool = False) -> list[tuple[str, str, str]]:
    """Place without the folder, sequence and label of each record."""
    found = read_records(str(path), "sequence", "label", labelled)
    return [(record.place.rpartition("/")[2], record.sequence, record.label) for record in found]


def test_fasta_has_lines_of_any_length_blank_ones_and_comments(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fasta", "\ufeff; old\n# new\n>one  \r\nACGT\r\n\r\nAC\r\n>two\nGG")
    assert records(path) == [("a.fasta, record 1 (one)", "ACGTAC", ""), ("a.fasta, record 2 (two)", "GG", "")]


def test_labels_are_the_second_half_of_the_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fa", ">one\nMK\nV\nHH\nC\n>two\nM\nC\n")
    assert [row[1:] for row in records(path, labelled=True)] == [("MKV", "HHC"), ("M", "C")]


def test_files_of_a_folder_name_the_labels(tmp_path: Path) -> None:
    write(tmp_path / "b.fq", FASTQ)
    write(tmp_path / ".hidden", "nothing")
    write(tmp_path / "c.csv", "sequence,label\nGG,ignored\n")
    (tmp_path / "a.v1.fa.gz").write_bytes(gzip.compress(b">x\nAA\n"))
    assert [row[1:] for row in records(tmp_path)] == [("AA", "a.v1"), ("ACG", "b"), ("AC", "b"), ("GG", "c")]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.fa", "ACGT\n", ", record 1: it begins with 'ACGT', not with >"),
        ("a.fa", "# nothing\n", " has no sequences"),
        ("a.fq", FASTQ[:-4], ", record 2: it is not @name, sequence, + and as many qualities, in four lines"),
        ("a.fq", ">x\nACG\n", ", record 1: it is not @name, sequence, + and as many qualities, in four lines"),
        ("a.txt", "ACG\n", ": give .fa, .fasta"),
        ("a.csv", "bases,label\nACG,1\n", " has no column sequence, it has bases, label: give --data.sequence_column"),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path: Path, name: str, content: str, problem: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError) as caught:
        records(path)
    assert str(caught.value).startswith(f"{path}{problem}")


@pytest.mark.parametrize("damage", ["cut", "not compressed", "UTF-16", "missing"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, damage: str) -> None:
    rng = random.Random(0)
    text = "".join(f">{number}\n{''.join(rng.choices('ACGT', k=50))}\n" for number in range(500))
    content = gzip.compress(text.encode("utf-16" if damage == "UTF-16" else "utf-8"))
    path = tmp_path / "a.fa.gz"
    if damage != "missing":
        path.write_bytes({"cut": content[:5000], "not compressed": text.encode()}.get(damage, content))
    with pytest.raises(InputError, match=rf"^{path}") as caught:
        records(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(str(path)) == 1
