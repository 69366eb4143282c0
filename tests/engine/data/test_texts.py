"""Many texts in one buffer."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from src.engine.data.labelled_tables import read_columns
from src.engine.data.texts import Texts
from src.engine.system.errors import InputError
from tests.conftest import write


def test_texts_are_like_a_list_of_strings() -> None:
    strings = ["caf\xe9", "", "two\nlines", "three", "\U0001f600"]
    texts = Texts.of(strings)
    assert (len(texts), list(texts), list(texts[1:3]), texts[-1]) == (5, strings, strings[1:3], strings[-1])
    some = texts.take([4, 0, 4])
    assert list(some) == [strings[4], strings[0], strings[4]]
    assert list(some.take([1])) == strings[:1]
    assert np.shares_memory(some.data, texts.data)
    assert list(Texts.of([])) == []


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_type_of_strings_in_parquet_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    path, strings = tmp_path / "own.parquet", [f"text {number}" for number in range(9)]
    parquet.write_table(
        pa.table({"text": pa.array(strings, kind), "label": pa.array(["a ", "b", "a"] * 3, kind)}), path
    )
    texts, labels = read_columns(str(path), "text", "label")
    assert (list(texts), labels) == (strings, ["a", "b", "a"] * 3)


def test_half_of_a_surrogate_pair_in_json_is_named(tmp_path: Path) -> None:
    row = r'{"text": "half \ud83d", "label": "a"}'
    path = write(tmp_path / "own.jsonl", '{"text": "x", "label": "a"}\n' + row)
    with pytest.raises(InputError, match=r"own.jsonl.*row 2 is not valid Unicode: it has half of a surrogate pair"):
        read_columns(path, "text", "label")


def test_parquet_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    texts = pa.array([b"caf\xe9"]).view(pa.string())
    parquet.write_table(pa.table({"text": texts, "label": ["a"]}), tmp_path / "own.parquet")
    with pytest.raises(InputError, match=r"own.parquet has texts that are not UTF-8: write"):
        read_columns(str(tmp_path / "own.parquet"), "text", "label")


@pytest.mark.parametrize(
    ("row", "column"), [(",a", "text"), ("\u3000 \x85,a", "text"), ("x,", "label"), ("x,\xa0 ", "label")]
)
def test_an_empty_row_behind_many_is_named(tmp_path: Path, row: str, column: str) -> None:
    path = write(tmp_path / "own.csv", "text,label\n" + "some text,a\n" * 200_000 + row + "\n")
    with pytest.raises(InputError, match=f"own.csv, row 200001: column {column} is empty"):
        read_columns(path, "text", "label")
