"""Tables of text and labels."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from src.engine.data import labelled_tables
from src.engine.data.labelled_tables import read_table
from src.engine.data.tables import read_batches, stream_columns
from src.engine.system.errors import InputError
from tests.conftest import write


def test_a_quotation_mark_in_a_tsv_swallows_no_rows(tmp_path: Path) -> None:
    texts = [f"row {number}" for number in range(60)]
    texts[8], texts[41] = '"row 8', '"great row 41'
    rows = [f"{text}\t{number % 2}" for number, text in enumerate(texts)]
    path = write(tmp_path / "own.tsv", "text\tlabel\n" + "\n".join(rows) + "\n")
    found = read_table(path, "text", "label")
    assert len(found) == 60
    assert found[8] == ('"row 8', "0")


def test_rows_of_several_lines_are_counted_and_the_first_is_named(tmp_path: Path, messages: list[str]) -> None:
    rows = [f"row {number},{number % 2}" for number in range(1, 61)]
    rows[7], rows[40] = '"row 8,0', '"great row 41,1'  # stray quotation marks
    path = write(tmp_path / "own.csv", "text,label\n" + "\n".join(rows) + "\n")
    found = read_table(path, "text", "label")
    assert len(found) == 27
    assert found[7][0].startswith("row 8,0\nrow 9,")
    wanted = f"{path}: rows that span several lines: 1, first row 8; check its quotation marks"
    assert messages == [wanted]
    assert len(list(stream_columns(Path(path), {"text": "--text_column"}))) == 27
    assert messages == [wanted, wanted]
    rows = [f"row {number},{number % 2},fine" for number in range(1, 61)]
    rows[7], rows[40] = 'row 8,0,"great', 'row 41,1,great"'  # in a column that is not read
    more = write(tmp_path / "more.csv", "text,label,comment\n" + "\n".join(rows) + "\n")
    assert len(read_table(more, "text", "label")) == 27
    assert messages[2:] == [wanted.replace(path, more)]
    read_table(write(tmp_path / "plain.csv", "text,label\na,1\n"), "text", "label")
    assert len(messages) == 3


MARK = "\ufeff"


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".csv", "text,label\nfirst,1\n"),
        (".csv", '"text","label"\n"first","1"\n'),
        (".tsv", "text\tlabel\nfirst\t1\n"),
        (".jsonl", '{"text": "first", "label": "1"}\n'),
    ],
)
def test_a_byte_order_mark_is_no_part_of_a_table(tmp_path: Path, suffix: str, content: str) -> None:
    path = write(tmp_path / f"own{suffix}", MARK + content)
    assert read_table(path, "text", "label") == [("first", "1")]
    assert list(stream_columns(Path(path), {"text": "--text_column"})) == [("first",)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_compressed_table_is_read_and_a_damaged_one_refused(tmp_path: Path, suffix: str) -> None:
    lines = {".csv": "{0},{0}", ".tsv": "{0}\t{0}", ".jsonl": '{{"text": "{0}", "label": "{0}"}}'}[suffix]
    head = {".csv": "text,label\n", ".tsv": "text\tlabel\n", ".jsonl": ""}[suffix]
    text = (head + "".join(lines.format(number**5) + "\n" for number in range(9000))).encode()
    path = tmp_path / f"own{suffix}.gz"
    path.write_bytes(gzip.compress(text))
    assert read_table(str(path), "text", "label") == [(str(number**5),) * 2 for number in range(9000)]
    assert sum(1 for _ in stream_columns(path, {"text": "--text_column"})) == 9000
    for content in (gzip.compress(text)[:-5000], text):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{path} is not a {suffix} file that can be read"):
            read_table(str(path), "text", "label")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_another_encoding_is_named(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"own{suffix}"
    path.write_bytes("text,label\nfirst,1\n".encode(encoding))
    with pytest.raises(InputError, match=rf"own{suffix} seems to be UTF-16: save it as UTF-8"):
        read_table(str(path), "text", "label")


@pytest.mark.parametrize("value", ['["C"]', '{"C": 1}'])
def test_a_list_is_neither_text_nor_label(tmp_path: Path, value: str) -> None:
    for row in (f'{{"text": {value}, "label": "a"}}', f'{{"text": "a", "label": {value}}}'):
        path = write(tmp_path / "own.jsonl", f'{{"text": "a", "label": "b"}}\n{row}\n')
        with pytest.raises(InputError, match=r"own\.jsonl, row 2: column \w+ is .'C'.*, not text or a number$"):
            read_table(path, "text", "label")


def test_rows_of_json_lines_keep_their_values_and_count_from_1(tmp_path: Path) -> None:
    date = "2020-01-01 00:00:00"
    path = write(tmp_path / "own.jsonl", f'{{"text": "{date}", "label": 1}}\n\n{{"text": "x", "label": "one"}}\n')
    assert read_table(path, "text", "label") == [(date, "1"), ("x", "one")]
    path = write(tmp_path / "bad.jsonl", '{"text": "x"}\n' * 5000 + "\n{\n")
    rows = stream_columns(Path(path), {"text": "--text_column"})
    assert [next(rows) for _ in range(5000)] == [("x",)] * 5000
    with pytest.raises(InputError, match=r"bad.jsonl is not a .jsonl file that can be read: row 5001: "):
        next(rows)


def test_bytes_and_missing_numbers_are_neither_text_nor_label(tmp_path: Path) -> None:
    path = str(tmp_path / "own.parquet")
    for text, label, message in (
        (b"good", "a", r"column text is b'good', not text or a number"),
        ("good", b"a", r"column label is b'a', not text or a number"),
        ("good", float("nan"), r"column label is empty; fill it or remove the row"),
    ):
        parquet.write_table(pa.table({"text": [text], "label": [label]}), path)
        with pytest.raises(InputError, match=rf"own\.parquet, row 1: {message}"):
            read_table(path, "text", "label")
    path = write(tmp_path / "own.jsonl", '{"text": NaN, "label": "a"}\n')
    with pytest.raises(InputError, match=r"row 1: column text is empty"):
        read_table(path, "text", "label")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_byte_that_is_not_utf8_is_found_in_the_text_of_a_compressed_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"own{suffix}"
    content = "text,label\nfirst,1\ncaf\xe9,1\n".encode("latin-1")
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    with pytest.raises(InputError, match=r"is not UTF-8: byte 22 is 0xe9, in line 3"):
        read_table(str(path), "text", "label")


def test_a_row_longer_than_its_compressed_table_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled_tables, "HEAD_BYTES", 2**10)
    monkeypatch.setattr(labelled_tables, "STREAM_BYTES", 2**12)
    path = tmp_path / "own.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\n" + b"a" * 2**18 + b",1\nb,0\n"))
    assert path.stat().st_size < 2**12
    assert [len(text) for text, _ in read_table(str(path), "text", "label")] == [2**18, 1]


def test_a_stray_quotation_mark_in_a_large_table_of_inputs_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", 'text,label\n"a,1\n' + "b,1\n" * 5000)
    with pytest.raises(InputError, match="a row is longer than 4,096 bytes, as after a stray quotation mark"):
        list(read_batches(Path(path), ["text"], ["--text_column"], 4096))
