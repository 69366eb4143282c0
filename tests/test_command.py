"""What the small commands share."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src import export, serve, tune
from src.errors import InputError


@pytest.mark.parametrize(
    ("command", "words", "package", "extra"),
    [
        (export.export, ["--format", "onnx", "--output", "m.onnx"], "onnxruntime", "deploy"),
        (export.export, ["--format", "safetensors", "--output", "m.safetensors"], "safetensors", "deploy"),
        (serve.serve, [], "uvicorn", "deploy"),
        (tune.tune, [], "optuna", "tune"),
    ],
)
def test_a_package_that_is_missing_is_named_with_what_installs_it(
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
