import functools
import hashlib
import io
import json
import operator
import tarfile
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from src.engine.data.labelled_tables import read_table
from src.engine.data.labels import label_order
from src.engine.data.loading import Batches
from src.engine.data.split import stratified_split
from src.engine.system.errors import InputError
from src.text import labelled_text
from src.text.labelled_text import LANGUAGES, LabelledTextDataModule, TokenizedTexts, by_length, language_names
from src.text.tokenizer import ByteTokenizer
from tests.conftest import serving
from tests.contract import check_folds, check_prepare

ROWS = [(f"text {number}, with a comma", f"class {number % 3}") for number in range(60)]


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched from where these texts really live."""
    monkeypatch.setattr(labelled_text, "POLARITY_URL", "http://127.0.0.1:9/x.tar.gz")


def ready(**arguments: object) -> LabelledTextDataModule:
    data = LabelledTextDataModule(**arguments)  # type: ignore[arg-type]
    data.setup("fit")
    return data


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def table(folder: Path, suffix: str, rows: list[tuple[object, object]]) -> str:
    path = folder / f"table{suffix}"
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    if suffix == ".parquet":
        parquet.write_table(pa.table({"id": range(len(rows)), "text": texts, "label": labels}), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows))
    else:
        cut, quote = ("\t", "") if suffix == ".tsv" else (",", '"')
        path.write_text(f"text{cut}label\n" + "".join(f"{quote}{t}{quote}{cut}{y}\n" for t, y in rows))
    return str(path)


# Tables


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_kind_of_table_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    assert read_table(table(tmp_path, suffix, ROWS), "text", "label") == ROWS  # type: ignore[arg-type]


def test_labels_may_be_numbers_and_texts_have_several_lines(tmp_path: Path) -> None:
    assert read_table(table(tmp_path, ".jsonl", [("a", 1), ("b", 0)]), "text", "label") == [("a", "1"), ("b", "0")]
    path = write(tmp_path / "lines.csv", 'text,label\n"two\nlines",01\nNA,null\n')
    assert read_table(path, "text", "label") == [("two\nlines", "01"), ("NA", "null")]
    numbers = write(tmp_path / "many.csv", "text,label\n" + "".join(f"t{i},{i % 11}\n" for i in range(60)))
    assert ready(path=numbers).labels == [str(number) for number in range(11)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nx,1\n,2\n", "a.csv, row 2: column text is empty"),
        ("b.csv", "text,label\nx,1\ny,\n", "b.csv, row 2: column label is empty"),
        ("c.csv", "words,label\nx,1\n", "c.csv has no column text, it has words, label: give --data.text_column"),
        ("d.csv", "text,sort\nx,1\n", "d.csv has no column label, it has text, sort: give --data.label_column"),
        ("e.csv", "text,label\n", "e.csv has no rows"),
        ("f.csv", "text,label\nx,1\ny,2,3\n", "f.csv is not a .csv file that can be read: .*row.*2"),
        ("g.jsonl", '{"text": "x", "label": 1}\n{"text": null, "label": 2}\n', "g.jsonl, row 2: column text is empty"),
        ("h.jsonl", '{"text": "x", "label": 1}\nnot json\n', "h.jsonl is not a .jsonl file that can be read"),
        ("i.parquet", "not parquet", "i.parquet is not a .parquet file that can be read"),
        ("j.txt", "text", "j.txt: give a .csv, .tsv, .jsonl or .parquet file"),
        ("k.csv", "text,label\n" + "x,1\n" * 9, "has one class only, 1: give at least two"),
        ("l.csv", "", "l.csv is empty or has no rows"),
        ("m.csv", "text,label", "m.csv is empty or has no rows"),
        ("n.jsonl", '\n{"text": "x", "label": 1}\n\nnot json\n', "n.jsonl is not .*: row 2: Expecting value"),
        ("o.jsonl", '["x", 1]\n', "o.jsonl is not .*: row 1 is .*, not an object with columns"),
        ("p.csv", "text;label\nx, y;1\n", "p.csv seems to be separated by semicolons, not commas: .*text;label"),
        ("q.tsv", "text,label\nx,1\n", "q.tsv seems to be separated by commas, not tabs"),
        ("r.csv", "sep=;\ntext;label\nx;1\n", "r.csv begins with sep=;, which is not CSV: remove this line"),
    ],
)
def test_a_bad_table_is_one_clear_error(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=f"(?i){message}"):
        ready(path=path)


def test_columns_of_one_name_bytes_that_are_not_utf8_and_long_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has several columns text"):
        ready(path=write(tmp_path / "twice.csv", "text,text,label\na,b,1\n"))
    for suffix, row in ((".csv", "b é,2"), (".tsv", "b é\t2"), (".jsonl", '{"text": "é", "label": 2}')):
        head = {".csv": "text,label", ".tsv": "text\tlabel"}.get(suffix, '{"text": "a", "label": 1}')
        (tmp_path / f"latin{suffix}").write_bytes(f"{head}\n{row}\n".encode("latin-1"))
        with pytest.raises(InputError, match=rf"latin{suffix} is not UTF-8: byte \d+ is 0xe9, in line 2"):
            ready(path=str(tmp_path / f"latin{suffix}"))
    for suffix in (".csv", ".jsonl"):
        rows = [("x" * 3_000_000, "1"), ("y", "2")]
        assert read_table(table(tmp_path, suffix, rows), "text", "label") == rows  # type: ignore[arg-type]


def test_a_missing_table_is_an_error() -> None:
    with pytest.raises(InputError, match=r"missing.csv: no such file"):
        ready(path="missing.csv")
    with pytest.raises(InputError, match=r"need --data.path"):
        ready(val_path="missing.csv")


# Parts


def test_a_split_is_stratified_whole_and_the_same_every_time(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = stratified_split([0] * 70 + [1] * 30, [0.1, 0.2])
    torch.manual_seed(2)
    assert stratified_split([0] * 70 + [1] * 30, [0.1, 0.2]) == first
    assert sorted(functools.reduce(operator.iadd, first, [])) == list(range(100))
    assert [(len([i for i in part if i < 70]), len([i for i in part if i >= 70])) for part in first] == [
        (49, 21),
        (7, 3),
        (14, 6),
    ]
    assert [len(part) for part in stratified_split([0, 1, 1], [0.1, 0.1])] == [2, 1, 0]  # what there is trains first


@pytest.mark.parametrize("has_own_parts", [False, True])
def test_folds_keep_copies_of_a_text_together(tmp_path: Path, has_own_parts: bool) -> None:
    rows = [(f"text {number % 50}", "ab"[number % 2]) for number in range(120)]
    own = {}
    for part in ("val", "test") if has_own_parts else ():
        (tmp_path / part).mkdir()
        own[f"{part}_path"] = table(tmp_path / part, ".csv", rows[:30])
    path = table(tmp_path, ".csv", rows)

    def texts(fold: int | None) -> list[list[str]]:
        data = ready(path=path, **own, fold=fold, folds=4)
        sets = (data.train_set, data.val_set, data.test_set)
        return [[str(part[index][0].tolist()) for index in range(len(part))] for part in sets]

    check_folds(texts, 4)


def test_a_class_that_lies_wholly_in_the_validation_part_of_a_fold_is_a_class(
    tmp_path: Path, messages: list[str]
) -> None:
    path = table(tmp_path, ".csv", [*((f"text {n}", "ab"[n % 2]) for n in range(30)), ("alone", "c")])
    for fold in range(1, 6):
        assert ready(path=path, fold=fold, folds=5).labels == ["a", "b", "c"]
    assert "No training samples of c" in messages


def test_the_vocabulary_of_a_fold_is_that_of_its_training_part(tmp_path: Path) -> None:
    words = [f"{chr(97 + n // 10)}x{chr(97 + n % 10)}" for n in range(60)]
    path = table(tmp_path, ".csv", [(f"same {word} {word}", "ab"[n % 2]) for n, word in enumerate(words)])
    data = ready(path=path, tokenizer="words", fold=2, folds=3)
    known = [word for word in words if f'"{word}"' in data.tokenizer.state]
    assert len(known) == len(data.train_set) == 60 - len(data.val_set) - len(data.test_set)


def test_prepare_gives_what_the_network_is_tested_on(tmp_path: Path) -> None:
    texts = [f"text {'very ' * (number % 5)}long {number}" for number in range(20)]
    rows = "".join(f"{text},class {number % 2}\n" for number, text in enumerate(texts))
    path = write(tmp_path / "table.csv", f"text,label\n{rows}")
    for tokenizer in ("words", "bytes"):
        check_prepare(LabelledTextDataModule(path, val_path=path, test_path=path, tokenizer=tokenizer), texts)


def test_files_of_ones_own_are_the_parts(tmp_path: Path) -> None:
    path = table(tmp_path, ".csv", ROWS)  # type: ignore[arg-type]
    test = write(tmp_path / "test.csv", "text,label\nmine,class 1\n")
    data = ready(path=path, test_path=test)
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (54, 6, 1)
    assert data.test_set.targets.tolist() == [1]
    other = write(tmp_path / "other.csv", "text,label\nmine,class 1\nmine,class 9\n")
    with pytest.raises(
        InputError, match=r"other.csv, row 2: class 'class 9' is not in the training data: use only class 0"
    ):
        ready(path=path, test_path=other)


def test_texts_that_stand_in_two_parts_are_reported(tmp_path: Path, messages: list[str]) -> None:
    path = table(tmp_path, ".csv", ROWS)  # type: ignore[arg-type]
    val = write(tmp_path / "val.csv", f'text,label\n"{ROWS[0][0]}",class 0\nnew,class 1\n')
    test = write(tmp_path / "test.csv", f'text,label\n"{ROWS[0][0]}",class 0\nnew,class 1\nnewer,class 1\n')
    ready(path=path, val_path=val, test_path=test)
    example = f"such as {ROWS[0][0]!r}"
    assert f"1 validation texts are also training texts, {example}" in messages
    assert f"1 test texts are also training texts, {example}" in messages
    assert "1 test texts are also validation texts, such as 'new'" in messages


@pytest.mark.slow
def test_labels_are_sorted_by_value_and_not_a_number_is_a_word() -> None:
    for labels in permutations(["10", "nan", "2", "a", "1e1", "-inf"]):
        assert sorted(labels, key=label_order) == ["-inf", "2", "10", "1e1", "a", "nan"]


@pytest.mark.parametrize("tokenizer", ["bytes", "words"])
def test_texts_that_are_cut_off_are_counted(tmp_path: Path, messages: list[str], tokenizer: str) -> None:
    rows = [(" ".join(["word", str(number % 7)] * 6), f"class {number % 2}") for number in range(60)]
    path = table(tmp_path, ".csv", rows)
    data = ready(path=path, max_length=10, tokenizer=tokenizer)
    count = len(data.train_set)
    said = (
        f"{count} of {count} training texts reach the limit of 10 tokens; longer ones are cut off: to keep more, raise"
    )
    assert any(line.startswith(said) for line in messages)
    del messages[:]
    ready(path=path, max_length=100, tokenizer=tokenizer)
    assert not any("reach the limit" in line for line in messages)


def test_labels_are_compared_over_all_tables_and_with_the_checkpoint(tmp_path: Path, messages: list[str]) -> None:
    path = table(tmp_path, ".csv", ROWS)  # type: ignore[arg-type]
    other = write(tmp_path / "other.csv", "text,label\nmine,Class 1\n")
    with pytest.raises(InputError, match=r"other.csv, row 1: class 'Class 1' is not in the training data"):
        ready(path=path, test_path=other)
    assert any("Labels 'class 1' (20), 'Class 1' (1) of" in line for line in messages)
    write(tmp_path / "other.csv", "text,label\nmine,class\xa01\n")
    with pytest.raises(InputError, match=r"'class 1' \(20\), 'class.xa01' \(1\) of .* look the same"):
        ready(path=path, test_path=other)
    first = ready(path=path)
    assert "Classes: class 0 20, class 1 20, class 2 20" in messages
    second = LabelledTextDataModule(path=write(tmp_path / "more.csv", "text,label\na,class 1\nb,class 7\n"))
    second.load_state_dict(first.state_dict())
    with pytest.raises(InputError, match=r"more.csv, row 2: class 'class 7' is not in the training data: use"):
        second.setup("test")
    third = LabelledTextDataModule(source="language_names")
    third.load_state_dict(first.state_dict())
    with pytest.raises(InputError, match=r"language_names: class .* is not in the training data: use only"):
        third.setup("test")


def test_a_checkpoints_labels_and_tokenizer_stay(tmp_path: Path) -> None:
    first = ready(path=table(tmp_path, ".csv", ROWS), tokenizer="words")  # type: ignore[arg-type]
    fewer = write(tmp_path / "fewer.csv", "text,label\n" + "a,class 1\nb,class 2\n" * 10)
    second = LabelledTextDataModule(path=fewer, tokenizer="words")
    second.load_state_dict(first.state_dict())
    second.setup("test")
    assert second.labels == ["class 0", "class 1", "class 2"]
    assert second.tokenizer.state == first.tokenizer.state
    assert set(second.test_set.targets.tolist()) == {1, 2}
    assert first.network_arguments() == {"vocab_size": first.tokenizer.vocab_size, "num_classes": 3}


# Batches


def tokenized(ids: list[Any], targets: list[int]) -> TokenizedTexts:
    return TokenizedTexts(np.concatenate(ids), [len(one) for one in ids], targets)


def lengths(count: int) -> TokenizedTexts:
    generator = torch.Generator().manual_seed(0)
    ids = [
        torch.full((int(length),), number % 256).numpy()
        for number, length in enumerate(torch.randint(1, 200, (count,), generator=generator))
    ]
    return tokenized(ids, list(range(count)))


def test_a_batch_is_padded_and_masked() -> None:
    texts = tokenized(ByteTokenizer().encode_batch(["abc", "d"], 9), [1, 0])
    tokens, mask, targets = texts.__getitems__([0, 1])
    assert tokens.tolist() == [[97, 98, 99], [100, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert targets.tolist() == [1, 0]


def test_buckets_hold_every_text_once_and_little_padding() -> None:
    texts = lengths(1003)
    sampler = Batches(1003, 16, None, by_length(texts.lengths, 16))
    batches = list(sampler)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(1003))
    assert list(sampler) == batches
    sampler.set_epoch(1)
    assert list(sampler) != batches

    def filled(batches: list[list[int]]) -> float:
        masks = [texts.__getitems__(batch)[1] for batch in batches]
        return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    assert filled(batches) > 0.95 > 0.7 > filled([list(range(start, start + 16)) for start in range(0, 992, 16)])
    sizes = [int(texts.lengths[batch[0]]) for batch in batches]
    assert sizes != sorted(sizes)  # batches of all lengths are mixed


@pytest.mark.parametrize(
    "arguments", [{"batch_size": 0}, {"max_length": 1}, {"val_share": 0.0}, {"test_share": 1.0}, {"max_vocab_size": 3}]
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, float]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(InputError, match=f"{name} {value}"):
        LabelledTextDataModule(**arguments)  # type: ignore[arg-type]


# Named texts


def test_names_belong_to_one_language_each() -> None:
    rows = language_names()
    labels = {label for _, label in rows}
    assert len(labels) == len(LANGUAGES) == 34
    assert len({text for text, _ in rows}) == len(rows) > 20_000
    latin = {label for label in labels if sum(text.isascii() for text, own in rows if own == label) > 100}
    assert len(latin) >= 10


@pytest.mark.slow
def test_the_names_are_announced_and_so_is_what_is_left_out(tmp_path: Path, messages: list[str]) -> None:
    data = ready(data_dir=str(tmp_path))
    assert data.data_source == data.hparams["data_source"] == "language_names"
    assert any("NOT REVIEWS" in message for message in messages)
    assert any(message.startswith("Left out 1,") for message in messages)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="rt-polarity could not be downloaded"):
        ready(data_dir=str(tmp_path), source="rt_polarity")


def archive(lines: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for suffix in ("neg", "pos"):
            content = "".join(f"{suffix} caf\xe9 {number} \n" for number in range(lines)).encode("latin-1")
            member = tarfile.TarInfo(f"rt-polaritydata/rt-polarity.{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_reviews_are_downloaded_checked_and_split_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archive(200)
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "x.tar.gz").write_bytes(content)
    data_dir = str(tmp_path / "data")
    monkeypatch.setattr(labelled_text, "POLARITY_LINES", 200)
    with serving(tmp_path / "mirror") as url:
        monkeypatch.setattr(labelled_text, "POLARITY_URL", f"{url}x.tar.gz")
        with pytest.raises(InputError, match="could not be downloaded"):
            ready(data_dir=data_dir, source="rt_polarity")  # its checksum is not the published one
        monkeypatch.setattr(labelled_text, "POLARITY_SHA256", hashlib.sha256(content).hexdigest())
        data = ready(data_dir=data_dir)
    assert data.data_source == "rt_polarity"
    assert data.labels == ["negative", "positive"]
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (320, 40, 40)
    texts = [data.tokenizer.decode(data.test_set[index][0].tolist()) for index in range(3)]
    assert texts == ["neg café 9", "neg café 19", "neg café 29"]
    assert data.tokenizer.decode(data.val_set[0][0].tolist()) == "neg café 8"
    (tmp_path / "data" / "rt_polarity" / "rt-polarity.pos").write_text("cut short\n")
    with pytest.raises(InputError, match=r"rt-polarity.pos has 1 lines, not 200"):
        ready(data_dir=data_dir)
    (tmp_path / "data" / "rt_polarity" / "rt-polarity.neg").unlink()
    with pytest.raises(InputError, match=r"rt-polarity.neg cannot be read .* to download it again"):
        ready(data_dir=data_dir)


def test_the_full_reviews_are_split_as_published(full_data: str) -> None:
    data = ready(data_dir=full_data, source="rt_polarity")
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (8530, 1066, 1066)


def test_predictions_say_which_texts_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ready(source="language_names", max_length=8)
    encode, seen = data.tokenizer.encode_batch, list[str]()
    monkeypatch.setattr(
        data.tokenizer, "encode_batch", lambda texts, most: (seen.extend(texts), encode(texts, most))[1]
    )
    assert data.notes(["a", "a" * 8, "a" * 9, "a" * 3]) == ["", "", "cut off after 8 tokens", ""]
    assert seen == ["a" * 8, "a" * 9]  # short ones are not tokenized once more
