"""What the tests of `src.export` share."""

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession

from src.engine.deploy.exporting import export
from src.engine.deploy.inference import Inference
from tests.engine.deploy.served import TRUSTED, of

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}


def written(checkpoint: str, form: str, folder: Path, *more: str) -> tuple[Path, str]:
    """Export to a folder; gives the file and what was printed."""
    output = folder / f"model{SUFFIXES.get(form, '')}"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        export([*of(checkpoint), "--format", form, "--output", str(output), *more])
    return output, said.getvalue()


def example(output: Path, given: str | list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the program beside an exported model prints for an image or a text."""
    said = io.StringIO()
    path = output.with_name(f"{output.name}.example.py")
    assert len(path.read_text().splitlines()) == 5
    monkeypatch.chdir(output.parent)
    monkeypatch.setattr(sys, "argv", [path.name, *([given] if isinstance(given, str) else given)])
    with contextlib.redirect_stdout(said):
        runpy.run_path(path.name, run_name="__main__")
    return said.getvalue().strip()


def check_format(
    checkpoint: str,
    form: str,
    folder: Path,
    value: Any,
    monkeypatch: pytest.MonkeyPatch,
    *more: str,
    tokenizer: bool = False,
) -> str:
    """Export, and check the file, what is beside it, and what its example says of an image or text.

    Args:
        checkpoint: path.
        form: one of `SUFFIXES`.
        folder: empty.
        value: an image, a text, or a file.
        monkeypatch: of the test.
        more: further options.
        tokenizer: whether a tokenizer is written, too.
    """
    output, said = written(checkpoint, form, folder, *more)
    found = re.search(r"largest difference (\S+) over (\d+) validation samples, limit 1e-04", said)
    assert found is not None
    assert float(found[1]) <= 1e-4
    assert int(found[2]) > 0
    assert output.stat().st_size > 1000
    beside = {output.name, f"{output.name}.example.py"} | ({f"{output.name}.tokenizer.json"} if tokenizer else set())
    beside |= {f"{output.name}.yaml"} if form == "safetensors" else set()
    assert {path.name for path in folder.iterdir()} == beside
    assert all(f"written {folder / name}" in said for name in beside)
    inference = Inference(checkpoint, "forward", trust=[TRUSTED])
    given = str(value) if isinstance(value, str | Path) else "image.png"
    if given == "image.png":
        value.save(folder / given)
    shown = example(output, given, monkeypatch)
    if isinstance(value, Path):
        value = inference.data.read_file(value)
    if form == "safetensors":
        assert shown.startswith(type(inference.task).__name__)
    elif inference.kind != "prompt":
        with torch.no_grad():
            expected = inference.net(*inference.prepare([value])[0])[0].argmax()
        assert shown == inference.labels[expected]
    return shown


def check_free_sizes(checkpoint: str, output: Path, shapes: list[tuple[int, ...]], largest: int) -> None:
    """Compare an ONNX file, or a program of torch, on inputs of other sizes: whole numbers below `largest`."""
    inference = Inference(checkpoint, "forward", trust=[TRUSTED])
    names = {"image": ["pixels"], "text": ["tokens", "mask"], "prompt": ["tokens"]}[inference.kind]
    session = InferenceSession(output) if output.suffix == ".onnx" else None
    module = torch.export.load(output).module() if session is None else None
    generator = np.random.default_rng(0)
    for shape in shapes:
        values = generator.integers(0, largest, shape).astype(np.uint8 if inference.kind == "image" else np.int64)
        inputs = [values, np.ones_like(values, dtype=bool)][: len(names)]
        tensors = [torch.from_numpy(one) for one in inputs]
        with torch.no_grad():
            expected = inference.net(*tensors).numpy()
            if session is None:
                logits = module(*tensors).numpy()
            else:
                (logits,) = session.run(None, dict(zip(names, inputs, strict=True)))
        assert logits.shape == expected.shape
        assert np.abs(logits - expected).max() < 1e-4


def check_int8(checkpoint: str, folder: Path, least: float, *more: str) -> Path:
    """Export in 8 bits; gives the file. The accuracy is at least `least` percent."""
    output, said = written(checkpoint, "onnx", folder, "--quantize", "int8", *more)
    found = re.search(r"accuracy on the validation part (\S+)% in float32 and (\S+)% in int8", said)
    assert found is not None
    before, after = float(found[1]), float(found[2])
    assert before > least
    assert abs(before - after) < 3
    assert {node.op_type for node in onnx.load(output).graph.node} & {"QuantizeLinear", "DynamicQuantizeLinear"}
    assert all(path.name.startswith("model.onnx") for path in folder.iterdir())
    return output
