"""Errors in options of texts and their networks, each one line and exit code 2."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import write

GPT = "--config configs/text/shakespeare_gpt.yaml"
LANGUAGES = "--config configs/text/language_id.yaml"
PRETRAINED = "--config=configs/text/sentiment_pretrained.yaml"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (f"{GPT} --data.path gone.txt", "--data.path gone.txt: no such file"),
        (f"{GPT} --data.path latin.txt", "latin.txt is not UTF-8: byte 3 is 0xe9"),
        (f"{GPT} --data.path x.csv --data LabelledTextDataModule", "x.csv: no such file"),
        (f"{GPT} --model.net.block_size 1", "block_size 1 is too small for GPT: give at least 2 tokens"),
        (f"{LANGUAGES} --data.path one.csv", "one.csv has one class only, 1: give at least two"),
        (f"{LANGUAGES} --data.path gap.csv", "gap.csv, row 2: column text is empty"),
        (f"{LANGUAGES} --data.path alike.csv", "labels 'good\\u200b' (1), 'good' (2) of alike.csv look the same"),
        (f"{LANGUAGES} --data.path utf16.csv", "utf16.csv seems to be UTF-16: save it as UTF-8"),
        (f"{GPT} --data.path utf16.csv", "utf16.csv seems to be UTF-16: save it as UTF-8"),
        (f"{LANGUAGES} --data.path rare.csv --data.tokenizer words", "the tokenizer words has 0 different tokens"),
        (f"{GPT} --data.path empty.txt", "empty.txt has 0 characters: too few to split"),
    ],
)
def test_an_error_of_the_user_is_one_line(
    words: str, expected: str, error_of: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 90)
    write(tmp_path / "one.csv", "text,label\na,1\nb,1\n")
    write(tmp_path / "gap.csv", "text,label\na,1\n,2\n")
    write(tmp_path / "alike.csv", "text,label\na,good\nb,good\u200b\nc,good\nd,bad\n")
    (tmp_path / "utf16.csv").write_text("text,label\na,1\n", encoding="utf-16")
    write(tmp_path / "rare.csv", "text,label\n" + "".join(f"word{number},{number % 2}\n" for number in range(60)))
    write(tmp_path / "empty.txt", "")
    assert expected in error_of(*words.split())


def test_a_pretrained_network_that_cannot_be_had_is_one_line(error_of: Callable[..., str]) -> None:
    assert "no/such is not a folder" in error_of(PRETRAINED, "--model.net.pretrained=no/such")
