"""What errors of the commands advise can be typed, and works."""

import argparse
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.engine.cli.command import command_parser, data_options, parse_words
from src.engine.deploy import serving
from src.engine.deploy.inference import Inference
from src.engine.deploy.predicting import predict
from src.engine.system.errors import InputError


def parser() -> argparse.ArgumentParser:
    made = command_parser("src.predict", "")
    made.add_argument("inputs", nargs="*")
    made.add_argument("--output", required=True)
    made.add_argument("--dry-run", action="store_true")
    made.add_argument("--with", dest="parts")
    return made


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--dry_run"], "--dry_run: no such option, did you mean --dry-run?"),
        (["--inputs", "a.png"], "--inputs: no such option: leave the word --inputs out and give only its values"),
        (["--parts=a"], "--parts=a: no such option"),
        (["--wth=a"], "--wth=a: no such option, did you mean --with?"),
        (["--outptu", "a"], "--outptu: no such option, did you mean --output?"),
        (["b.png"], "b.png: no option takes it: give all inputs in one place, and a text with blanks in quotes"),
    ],
)
def test_no_option_is_advised_that_is_refused(words: list[str], line: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_words(parser(), ["a.png", "--output", "t.csv", *words])
    assert str(caught.value) == line


def test_a_word_without_its_option_is_told_to_who_takes_no_inputs() -> None:
    line = r"^best.ckpt: no option takes it: give it after its option \(see --help\)"
    with pytest.raises(InputError, match=line):
        parse_words(command_parser("src.serve", ""), ["best.ckpt"])


def test_options_without_a_value_say_that_they_may_be_left_out() -> None:
    with pytest.raises(InputError, match=r"^--quiet: give a value, or leave it out$"):
        parse_words(command_parser("src.tune", ""), ["--quiet"], also="")
    assert parse_words(command_parser("src.tune", ""), ["--fast_dev_run"], also="").more == [("--fast_dev_run", "true")]


def test_a_value_that_is_no_yaml_names_its_option() -> None:
    with pytest.raises(InputError, match=r"^--data\.path \*\.jpg: not YAML: put quotes within the quotes"):
        data_options(argparse.Namespace(more=[("--data.path", "*.jpg")]))


def test_a_wrong_variable_is_not_blamed_on_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn")
    monkeypatch.setenv("SERVE_TOKEN", "")
    with pytest.raises(InputError, match=r"^variable SERVE_TOKEN: give printable ASCII .* or unset it$"):
        serving._parse(["--port", "8123"])
    with pytest.raises(InputError, match=r"^--token: give printable ASCII .* or leave it out$"):
        serving._parse(["--port", "8123", "--token= a"])


@pytest.mark.parametrize(
    ("number", "port", "line"),
    [
        (97, 8123, f"--host 127.0.0.1 cannot be used ({os.strerror(97)}): give another"),
        (98, 65535, f"--port 65535 of 127.0.0.1 cannot be used ({os.strerror(98)}): give another, such as --port 8000"),
    ],
)
def test_what_a_socket_refuses_is_named(number: int, port: int, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn")

    def refuses(*_: Any, **__: Any) -> None:
        raise OSError(number, "in many words")

    monkeypatch.setattr(serving.socket, "create_server", refuses)
    with pytest.raises(InputError) as caught:
        serving._parse(["--port", str(port)])
    assert str(caught.value) == line


class Compares:
    """A task that compares images with texts."""

    def name_classes(self) -> None: ...


class TakesNoNames(Compares):
    """A task that compares images with sounds."""

    takes_names = False


@pytest.mark.parametrize(
    ("task", "words", "line"),
    [
        (Compares(), (), "Compares has no classes: give --labels, one text per class"),
        (TakesNoNames(), (), "TakesNoNames has no texts to name classes with: it can only be trained, validated and"),
        (SimpleNamespace(finds_boxes=True), ("--truth=x.json",), "boxes are scored only by .* test: leave --truth out"),
        (SimpleNamespace(), ("--pictures",), "--pictures: SimpleNamespace finds no boxes to draw: leave it out"),
        (SimpleNamespace(), ("--truth=x",), "--truth x: give the word folder: each file's folder is its class"),
    ],
)
def test_what_a_task_cannot_do_is_said_first(
    task: Any, words: tuple[str, ...], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = SimpleNamespace(file_suffixes=(".wav",))
    fake = SimpleNamespace(task=task, labels=[], kind="file", data=data, missing_paths=[])
    fake.name_classes = partial(Inference.name_classes, fake)
    monkeypatch.setattr("src.engine.deploy.inference.Inference", lambda *_, **__: fake)
    with pytest.raises(InputError, match=line):
        predict([str(tmp_path), f"--output={tmp_path / 'out.csv'}", "--accelerator=cpu", *words])
