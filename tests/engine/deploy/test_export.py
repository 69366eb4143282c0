"""The command that writes models for other runtimes, as a user meets it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src.engine.deploy import formats
from src.engine.deploy.inference import Inference
from src.engine.system.errors import InputError
from src.export import export
from src.vision.mnist import MNISTDataModule
from tests.conftest import fit, program, tiny_pretrained

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a tiny BERT, fine-tuned for a few steps."""
    return own_pretrained(tmp_path_factory.mktemp("pretrained"), "bert")


def own_pretrained(folder: Path, kind: str, *more: str) -> str:
    table = folder / "own.csv"
    rows = [
        f"the {'cat sat on the mat' if i % 2 else 'dog ran over the hill'},{'cat' if i % 2 else 'dog'}"
        for i in range(60)
    ]
    table.write_text("text,label\n" + "\n".join(rows) + "\n")
    words = (f"--data.path={table}", f"--model.net.pretrained={tiny_pretrained(kind, folder)}", "--data.max_length=16")
    return fit(folder, "--config=configs/text/sentiment_pretrained.yaml", "--max_epochs=1", *words, *more)


@pytest.mark.parametrize("kind", ["digits", "sentiments", "writer", "pretrained"])
@pytest.mark.parametrize("form", SUFFIXES)
def test_every_format_computes_what_the_checkpoint_does(
    kind: str, form: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = request.getfixturevalue(kind)
    output = tmp_path / f"model{SUFFIXES[form]}"
    export(["--ckpt_path", checkpoint, "--format", form, "--output", str(output)])
    said = capsys.readouterr().out
    found = re.search(r"largest difference (\S+) over (\d+) validation samples, limit 1e-04", said)
    assert found is not None
    assert float(found[1]) <= 1e-4
    assert int(found[2]) > 0
    assert output.stat().st_size > 1000
    tokenizer = kind in ("sentiments", "pretrained")
    beside = {output.name, f"{output.name}.example.py"} | ({f"{output.name}.tokenizer.json"} if tokenizer else set())
    beside |= {f"{output.name}.yaml"} if form == "safetensors" else set()
    assert {path.name for path in tmp_path.iterdir()} == beside
    assert all(f"written {tmp_path / name}" in said for name in beside)
    example = (tmp_path / f"{output.name}.example.py").read_text()
    assert len(example.splitlines()) == 5
    given = {"digits": "digit.png", "sentiments": "a fine film", "writer": "To be", "pretrained": "the cat sat"}[kind]
    data = MNISTDataModule(source="sample")
    data.setup("test")
    digit, target = data.test_set.images[3], data.test_set.targets[3]
    Image.fromarray(digit.numpy()).save(tmp_path / "digit.png")
    done = subprocess.run(
        [sys.executable, f"{output.name}.example.py", given],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    inference = Inference(checkpoint, "forward")
    if form == "safetensors":
        assert type(inference.task).__name__ in done.stdout
        return
    if kind == "writer":
        assert done.stdout.strip() == ("(1, 5, 256)" if form == "onnx" else "torch.Size([1, 5, 256])")
        return
    value: Any = Image.fromarray(digit.numpy()) if kind == "digits" else given
    with torch.no_grad():
        expected = inference.net(*inference.prepare([value])[0])[0].argmax()
    assert done.stdout.strip() == inference.labels[expected]
    assert kind != "digits" or done.stdout.strip() == str(target.item())


@pytest.mark.parametrize(("kind", "name"), [("digits", "pixels"), ("sentiments", "tokens"), ("writer", "tokens")])
def test_batch_and_length_are_free_and_pixels_are_as_in_files(
    kind: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import onnxruntime

    checkpoint = request.getfixturevalue(kind)
    output = tmp_path / "model.onnx"
    export(["--ckpt_path", checkpoint, "--format", "onnx", "--output", str(output)])
    session = onnxruntime.InferenceSession(output)
    net = Inference(checkpoint, "forward").net
    generator = np.random.default_rng(0)
    shapes = [(1, 1, 28, 28), (9, 1, 28, 28)] if kind == "digits" else [(1, 3), (5, 29)]
    for shape in shapes:
        values = generator.integers(0, 250 if kind != "sentiments" else 8, shape)
        values = values.astype(np.uint8 if kind == "digits" else np.int64)
        inputs = {name: values} | ({"mask": np.ones_like(values, dtype=bool)} if kind == "sentiments" else {})
        (logits,) = session.run(None, inputs)
        with torch.no_grad():
            expected = net(*(torch.from_numpy(value) for value in inputs.values())).numpy()
        assert logits.shape == expected.shape
        assert np.abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize("kind", ["digits", pytest.param("sentiments", marks=pytest.mark.slow)])
def test_int8_is_smaller_and_says_what_it_costs(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = request.getfixturevalue(kind)
    for name, more in (("whole.onnx", ()), ("int8.onnx", ("--quantize", "int8"))):
        export(["--ckpt_path", checkpoint, "--format", "onnx", "--output", str(tmp_path / name), *more])
    found = re.search(r"accuracy on the validation part (\S+)% before and (\S+)% in int8", capsys.readouterr().out)
    assert found is not None
    before, after = float(found[1]), float(found[2])
    assert before > 85
    assert abs(before - after) < 3
    whole, small = ((tmp_path / name) for name in ("whole.onnx", "int8.onnx"))
    import onnx

    kinds = {node.op_type for node in onnx.load(small).graph.node}
    assert kinds & {"QuantizeLinear", "DynamicQuantizeLinear"}
    if kind == "digits":
        assert small.stat().st_size < 0.6 * whole.stat().st_size
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"whole", "int8"}


@pytest.mark.parametrize(
    "kind", ["bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("roberta", "gpt2"))]
)
def test_a_pretrained_model_goes_back_to_transformers(kind: str, tmp_path: Path) -> None:
    import transformers

    lora = ("--model.net.lora_rank=2",) if kind == "roberta" else ()
    checkpoint = own_pretrained(tmp_path, kind, *lora)
    folder = tmp_path / "exported"
    export(["--ckpt_path", checkpoint, "--format", "huggingface", "--output", str(folder)])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.config.id2label == {0: "cat", 1: "dog"}
    texts = ["the cat sat on the mat", "dog"]
    inference = Inference(checkpoint)
    with torch.no_grad():
        logits = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        expected = inference.net(*inference.prepare(texts)[0])
    assert torch.allclose(logits, expected, atol=1e-4)
    done = subprocess.run(
        [sys.executable, "exported.example.py", "the cat"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in ("cat", "dog")


def test_a_file_that_computes_something_else_is_not_left(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = formats.torch_file

    def wrong(reference: Any, path: Path) -> Any:
        exported = honest(reference, path)
        runtime = exported.runtime
        exported.runtime = lambda *inputs: runtime(*inputs) + 2e-4
        return exported

    monkeypatch.setattr(formats, "torch_file", wrong)
    with pytest.raises(InputError, match=r"logits differ from the checkpoint's by 2\.0e-04, more than 1e-04"):
        export(["--ckpt_path", digits, "--format", "torch", "--output", str(tmp_path / "model.pt2")])
    assert not list(tmp_path.iterdir())


CANNOT = [
    (("--output", "model.onnx"), r"--format is missing: give onnx, torch, safetensors, huggingface"),
    (("--format", "onnx"), r"--output is missing: give a name such as model\.onnx"),
    (("--format", "onnx", "--output", "model.pt"), r"give a name that ends in \.onnx for --format onnx"),
    (("--format", "keras", "--output", "model.h5"), r"--format: invalid choice: 'keras'"),
    (("--format", "onnx", "--output", "mine.onnx"), r"mine\.onnx is there already"),
    (("--format", "torch", "--output", "other.pt2"), r"other\.pt2\.example\.py is there already"),
    (("--format", "torch", "--output", "no/such/model.pt2"), r"there is no folder"),
    (("--format", "torch", "--output", "model.pt2", "--quantize", "int8"), r"only --format onnx can be, not torch"),
    (("--format", "huggingface", "--output", "folder"), r"CNN is not of transformers; give onnx or torch"),
    (("--format", "onnx", "--output", "model.onnx", "--data.sourse", "sample"), r"no such argument.*source"),
]


@pytest.mark.parametrize(("words", "message"), CANNOT)
def test_what_cannot_work_is_one_error(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.onnx", "other.pt2.example.py"):
        Path(name).write_text("mine")
    with pytest.raises(InputError, match=message):
        export(["--ckpt_path", digits, *words])
    assert {path.name for path in tmp_path.iterdir()} == {"mine.onnx", "other.pt2.example.py"}
    assert Path("mine.onnx").read_text() == "mine"


@pytest.mark.parametrize("form", SUFFIXES)
def test_a_disk_without_room_is_one_error_that_says_how_much_it_takes(digits: str, small_disk: Path, form: str) -> None:
    (small_disk / "other").write_bytes(bytes(3 * 2**20))
    with pytest.raises(InputError, match=r"needs about 4\.\d MB and 3\.0 MB are free: make room"):
        export(["--ckpt_path", digits, "--format", form, "--output", str(small_disk / f"model{SUFFIXES[form]}")])
    assert [path.name for path in small_disk.iterdir()] == ["other"]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "message"), CANNOT)
def test_what_cannot_work_ends_the_program_with_one_line(
    digits: str, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    for name in ("mine.onnx", "other.pt2.example.py"):
        (tmp_path / name).write_text("mine")
    done = program("--ckpt_path", digits, *words, module="src.export", cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(message, done.stderr.strip().splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"mine.onnx", "other.pt2.example.py"}


@pytest.mark.slow
@pytest.mark.parametrize("form", SUFFIXES)
@pytest.mark.parametrize("kind", ["digits", "sentiments", "writer", "pretrained"])
def test_every_format_as_a_command(kind: str, form: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    output = tmp_path / f"model{SUFFIXES[form]}"
    words = ("--ckpt_path", request.getfixturevalue(kind), "--format", form, "--output", str(output))
    done = program(*words, module="src.export")
    assert done.returncode == 0, done.stderr
    assert f"written {output}" in done.stdout


@pytest.mark.slow
def test_as_a_command(digits: str, tmp_path: Path) -> None:
    words = ("--ckpt_path", digits, "--format", "torch")
    done = program(*words, "--output", str(tmp_path / "model.pt2"), module="src.export")
    assert done.returncode == 0, done.stderr
    assert "largest difference" in done.stdout
    again = program(*words, "--output", str(tmp_path / "model.pt2"), module="src.export")
    assert again.returncode == 2
    assert again.stderr.strip().splitlines()[-1].startswith("error: --output")
    assert "Traceback" not in again.stderr
