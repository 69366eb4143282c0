"""Code shared by the small commands."""

import errno
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src import export, serve, tune
from src.engine.cli.command import command_parser, new_output, parse_words, run_command
from src.engine.system import quiet
from src.engine.system.errors import InputError
from src.engine.system.interruption import SIGNALS, Interrupted


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("command", "words", "package", "extra"),
    [
        (export.export, ["--format", "onnx", "--output", "m.onnx"], "onnxruntime", "deploy"),
        (export.export, ["--format", "safetensors", "--output", "m.safetensors"], "safetensors", "deploy"),
        (serve.serve, [], "uvicorn", "deploy"),
        (tune.tune, [], "optuna", "tune"),
    ],
)
def test_the_error_for_a_missing_package_says_how_to_install_it(
    command: Callable[[list[str]], Any],
    words: list[str],
    package: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == package else found(name, *more)
    )
    with pytest.raises(
        InputError, match=rf"needs the package {package}: install it with pip install -e '\.\[{extra}\]'"
    ):
        command(words)


def test_a_full_disk_is_one_line_and_other_errors_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(lambda args: fail(OSError(errno.ENOSPC, "No space left on device")))
    assert stop.value.code == 2
    line = "error: standard output cannot be written (No space left on device): free some space\n"
    assert capsys.readouterr().err == line
    with pytest.raises(ZeroDivisionError):
        run_command(lambda args: fail(ZeroDivisionError()))


def test_a_link_to_nothing_is_not_replaced(tmp_path: Path) -> None:
    link = tmp_path / "out.csv"
    link.symlink_to(tmp_path / "gone.csv")
    with pytest.raises(InputError, match=r"--output .*out\.csv already exists"):
        new_output("--output", str(link))


def test_debug_shows_the_traceback_of_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def show(args: list[str]) -> None:
        options = parse_words(command_parser("src.predict", ""), args)
        raise InputError(f"no, debug {options.debug}")

    monkeypatch.setattr(sys, "argv", ["predict"])
    with pytest.raises(SystemExit):
        run_command(show)
    monkeypatch.setattr(sys, "argv", ["predict", "--debug"])
    with pytest.raises(InputError, match="no, debug True"):
        run_command(show)


def test_options_that_are_passed_on_keep_their_order_and_take_any_value() -> None:
    parser = command_parser("src.predict", "")
    parser.add_argument("inputs", nargs="*")
    parser.add_argument("--labels", nargs="+")
    words = ["a.png", "--labels", "x y", "z", "--data.unit", "km h", "--data.size", "-1e-3", "--data.unit=m"]
    options = parse_words(parser, words, also="data.")
    assert (options.inputs, options.labels) == (["a.png"], ["x y", "z"])
    assert options.more == [("--data.unit", "km h"), ("--data.size", "-1e-3"), ("--data.unit", "m")]
    with pytest.raises(InputError, match=r"^--data\.unit: give a value"):
        parse_words(command_parser("src.predict", ""), ["--data.unit"], also="data.")


@pytest.mark.parametrize(
    ("stop", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C\n"),
        (Interrupted(signal.SIGTERM), 143, "stopped by SIGTERM\n"),
        (BrokenPipeError(), 130, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_stopped_command_says_so_in_its_first_process(
    stop: BaseException,
    code: int,
    line: str,
    rank: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handlers = [signal.getsignal(one) for one in SIGNALS]
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(quiet, "drop_output", lambda: None)
    try:
        with pytest.raises(SystemExit) as end:
            run_command(lambda _: fail(stop))
    finally:
        for one, handler in zip(SIGNALS, handlers, strict=True):
            signal.signal(one, handler)
    assert (end.value.code, capsys.readouterr().err) == (code, line if rank == "0" else "")


def test_sigterm_ends_a_command_as_ctrl_c_does() -> None:
    handlers = [signal.getsignal(one) for one in SIGNALS]
    left: list[bool] = []

    def command(_: list[str]) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            left.append(True)

    try:
        with pytest.raises(SystemExit) as end:
            run_command(command)
    finally:
        for one, handler in zip(SIGNALS, handlers, strict=True):
            signal.signal(one, handler)
    assert (end.value.code, left) == (143, [True])
