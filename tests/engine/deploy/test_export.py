"""The command that writes models for other runtimes, as a user meets it."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor, nn

from src import export as command
from src.engine.deploy import exporting, formats
from src.engine.deploy.exporting import export
from src.engine.deploy.formats import accuracy, largest_difference
from src.engine.deploy.inference import Inference
from src.engine.deploy.rebuild import completed
from src.engine.system.errors import InputError
from tests import toy
from tests.conftest import fit, program
from tests.contract import check_prepare
from tests.engine.deploy.conftest import TOYS, changed
from tests.engine.deploy.exports import SUFFIXES, check_format, check_free_sizes, check_int8, example, written
from tests.engine.deploy.served import TRUSTED, of, one_line, toy_samples
from tests.engine.deploy.toys import LateData, ToyTokenizer
from tests.toy import ToyNet


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["toy_checkpoint", "toy_texts", "toy_writer"])
@pytest.mark.parametrize("form", SUFFIXES)
def test_every_format_computes_what_the_checkpoint_does_whatever_the_size(
    kind: str, form: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = request.getfixturevalue(kind)
    image, label = (found[2] for found in toy_samples(3))
    is_image = kind == "toy_checkpoint"
    value: Any = image if is_image else "a fine film"
    shown = check_format(checkpoint, form, tmp_path, value, monkeypatch, tokenizer=not is_image)
    if form == "safetensors":
        return
    shape = ("(1, 11, 27)", "torch.Size([1, 11, 27])")
    assert shown in {"toy_checkpoint": (label,), "toy_texts": ("good",), "toy_writer": shape}[kind]
    shapes = [(1, 1, 8, 8), (9, 1, 8, 8)] if is_image else [(1, 3), (5, 13)]
    check_free_sizes(checkpoint, tmp_path / f"model{SUFFIXES[form]}", shapes, 250 if is_image else 27)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["toy_checkpoint", "toy_texts"])
def test_int8_says_what_it_costs(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    check_int8(request.getfixturevalue(kind), tmp_path, least=95)


def test_a_network_that_knows_the_hub_writes_its_own_folder(
    toy_texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, said = written(toy_texts, "huggingface", tmp_path)
    assert "largest difference 0.0e+00" in said
    assert json.loads((output / "config.json").read_text()) == {"labels": ["good", "bad"]}
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.example.py"}
    assert example(output, "a fine film", monkeypatch) == "a program of five lines"


def test_few_samples_are_compared_if_each_has_many_outputs(
    toy_texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "MAX_OUTPUTS", 6)  # of two classes each
    _, said = written(toy_texts, "huggingface", tmp_path)
    assert "over 3 validation samples" in said


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_left(
    toy_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = formats.torch_file

    def wrong(reference: Any, path: Path) -> Any:
        runtime, lines = honest(reference, path)
        return lambda *inputs: runtime(*inputs) + 2e-4, lines

    monkeypatch.setitem(formats.WRITERS, "torch", wrong)
    with pytest.raises(InputError, match=r"outputs differ from the checkpoint's by 2\.0e-04, more than 1e-04"):
        export([*of(toy_checkpoint), "--format", "torch", "--output", str(tmp_path / "model.pt2")])
    assert not list(tmp_path.iterdir())


def recurrent(cell: str, folder: Path) -> str:
    """A checkpoint of a recurrent network."""
    words = (f"--config={toy.RECIPE}", f"--data={TOYS}.ToyTexts", f"--model.net={TOYS}.ToyRecurrent", "--max_epochs=1")
    return fit(folder, *words, f"--model.net.cell={cell}")


@pytest.mark.slow
def test_a_recurrent_network_keeps_its_length_free(tmp_path: Path) -> None:
    checkpoint = recurrent("GRU", tmp_path)
    output, _ = written(checkpoint, "torch", tmp_path)
    check_free_sizes(checkpoint, output, [(1, 3), (5, 13)], 27)


@pytest.mark.slow
def test_a_network_that_torch_cannot_export_is_one_line_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*of(recurrent("RNN", tmp_path / "run")), "--format", "torch", "--output", str(tmp_path / "model.pt2"))
    line = one_line(command.main, monkeypatch, capsys, *words)
    assert re.match(
        r"error: ToyRecurrent cannot be exported in this format \(it fixes the length at 21\): try another --format: ",
        line,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_size_that_torch_onnx_fixes_is_one_line(
    toy_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As it does for some networks, instead of an error.
    monkeypatch.setattr(formats.Reference, "dynamic_shapes", lambda _: None)
    with pytest.raises(InputError, match=r"ToyNet cannot be exported in this format \(it fixes the batch at 3\)"):
        written(toy_checkpoint, "onnx", tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_error_of_an_exporter_is_one_short_line() -> None:
    reference: Any = SimpleNamespace(inference=SimpleNamespace(task=SimpleNamespace(net=ToyNet())))

    def fail() -> None:
        try:
            raise TypeError("data-dependent\n  control flow " + "x" * 500)
        except TypeError as error:
            raise RuntimeError("Failed to export. # Steps") from error

    with (
        pytest.raises(
            InputError, match=r"ToyNet cannot .* \(TypeError: data-dependent control flow x+\): try"
        ) as raised,
        formats.exporting(reference),
    ):
        fail()
    assert len(str(raised.value)) < 350
    with pytest.raises(OSError, match="full"), formats.exporting(reference):
        raise OSError("full")


def test_an_error_of_a_plain_module_names_it() -> None:
    reference: Any = SimpleNamespace(inference=SimpleNamespace(task=nn.Linear(1, 1)))
    message = r"^Linear cannot be exported in this format \(ValueError: no\)"
    with pytest.raises(InputError, match=message), formats.exporting(reference):
        raise ValueError("no")


def test_a_tokenizer_of_another_library_is_not_asked_for_its_files(
    toy_texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ToyTokenizer, "example")
    monkeypatch.delattr(ToyTokenizer, "json")
    output, _ = written(toy_texts, "torch", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {output.name, f"{output.name}.example.py"}
    text = output.with_name(f"{output.name}.example.py").read_text()
    assert "# give the tokens that ToyTexts.prepare returns for a text" in text


class Hooked(LightningModule):
    """Makes its head in the hook, for which it may need a Trainer."""

    def __init__(self, has_head: bool = False, needs_trainer: bool = False) -> None:
        super().__init__()
        self.needs_trainer = needs_trainer
        self.body = nn.Linear(1, 1)
        if has_head:
            self.head = nn.Linear(1, 1)

    def configure_model(self) -> None:
        self.first = nn.Linear(1, 1)
        if self.needs_trainer:
            assert self.trainer.world_size
        self.head = nn.Linear(1, 1)


def test_the_hook_that_makes_layers_is_called_unless_it_fails_and_is_not_needed() -> None:
    weights = Hooked(has_head=True).state_dict()
    model, is_called = completed(Hooked, weights)
    assert is_called
    assert hasattr(model, "head")
    model, is_called = completed(lambda: Hooked(has_head=True, needs_trainer=True), weights)
    assert not is_called
    assert not hasattr(model, "first")
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):
        completed(lambda: Hooked(needs_trainer=True), weights)
    assert completed(lambda: nn.Linear(1, 1), {})[1] is False


def test_the_limit_is_relative_for_numbers_that_are_no_logits() -> None:
    reference: Any = SimpleNamespace(net=lambda values: values, has_logits=False, inference=SimpleNamespace(task=None))
    samples = [((torch.tensor([[2e6], [1.0]]),), torch.zeros(2)), ((torch.tensor([[-5.0]]),), torch.zeros(1))]

    def one_more(values: torch.Tensor) -> torch.Tensor:
        return values + 1

    assert largest_difference(reference, one_more, samples) == pytest.approx(5e-7)
    assert largest_difference(reference, one_more, samples[1:]) == pytest.approx(0.2)
    reference.has_logits = True
    assert largest_difference(reference, one_more, samples) == 1
    assert largest_difference(reference, lambda values: values * torch.nan, samples) == torch.inf


def test_accuracy_counts_each_of_several_labels() -> None:
    targets = torch.tensor([[1, 0], [1, -100]])
    samples = [((torch.tensor([[3.0, 2.0], [1.0, 9.0]]),), targets)]
    task = SimpleNamespace(num_classes=2)
    reference: Any = SimpleNamespace(inference=SimpleNamespace(task=task), samples=lambda: samples)
    assert accuracy(reference, lambda logits: logits) == pytest.approx(2 / 3)


def test_the_comparison_is_on_pixels_even_if_they_are_normalised_on_the_device(
    toy_checkpoint: str, tmp_path: Path
) -> None:
    path = changed(toy_checkpoint, tmp_path / "late.ckpt", data=f"{TOYS}.LateData")
    reference = formats.Reference(Inference(path, "forward", trust=[TRUSTED]))
    data: Any = reference.inference.data
    for part in ("train", "val"):
        (pixels,), targets = reference.samples(5, part)[0]
        expected = getattr(data, f"{part}_set")
        assert torch.equal(pixels, expected.pixels[:5])
        assert torch.equal(targets, expected.targets[:5])
    check_prepare(LateData(), [Image.fromarray(one[0].numpy()) for one in data.test_set.pixels])


def test_a_model_that_takes_its_classes_from_texts_is_refused(toy_matcher: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ToyMatcher compares images with texts, which no format supports"):
        export([*of(toy_matcher), "--format", "onnx", "--output", str(tmp_path / "model.onnx")])


CANNOT = [
    (("--output", "model.onnx"), r"--format is missing: give onnx, torch, safetensors, huggingface"),
    (("--format", "onnx"), r"--output is missing: give a name such as model\.onnx"),
    (("--format", "onnx", "--output", "model.pt"), r"give a name that ends in \.onnx for --format onnx"),
    (("--format", "keras", "--output", "model.h5"), r"--format: invalid choice: 'keras'"),
    (("--format", "onnx", "--output", "mine.onnx"), r"mine\.onnx already exists"),
    (("--format", "torch", "--output", "other.pt2"), r"other\.pt2\.example\.py already exists"),
    (("--format", "torch", "--output", "no/such/model.pt2"), r"there is no folder"),
    (("--format", "torch", "--output", "model.pt2", "--quantize", "int8"), r"only for --format onnx, not torch"),
    (("--format", "huggingface", "--output", "folder"), r"ToyNet is not a transformers model; give onnx or torch"),
    (("--format", "checkpoint", "--output", "whole.ckpt"), r"last\.ckpt is not a sharded checkpoint"),
    (
        ("--format", "onnx", "--output", "model.onnx", "--data.sise", "9"),
        r"^(error: )?--data\.sise: ToyData has no such argument.*size",
    ),
]


@pytest.mark.parametrize(("words", "message"), CANNOT)
def test_what_cannot_work_ends_the_command_with_one_line(
    toy_checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.onnx", "other.pt2.example.py"):
        Path(name).write_text("mine")
    assert re.search(message, one_line(command.main, monkeypatch, capsys, *of(toy_checkpoint), *words))
    assert {path.name for path in tmp_path.iterdir()} == {"mine.onnx", "other.pt2.example.py"}
    assert Path("mine.onnx").read_text() == "mine"


@pytest.mark.parametrize("form", SUFFIXES)
def test_a_disk_without_room_is_one_error_that_says_how_much_it_takes(
    toy_checkpoint: str, small_disk: Path, form: str
) -> None:
    (small_disk / "other").write_bytes(bytes(3 * 2**20))
    output = small_disk / f"model{SUFFIXES[form]}"
    with pytest.raises(InputError, match=r"needs about 4\.\d MB and 3\.0 MB are free"):
        export([*of(toy_checkpoint), "--format", form, "--output", str(output)])
    assert [path.name for path in small_disk.iterdir()] == ["other"]


@pytest.mark.slow
def test_as_a_command(toy_checkpoint: str, tmp_path: Path) -> None:
    words = (*of(toy_checkpoint), "--format", "torch", "--output", str(tmp_path / "model.pt2"))
    done = program(*words, module="src.export", REAL_INTERPRETER="1")
    assert done.returncode == 0, done.stderr
    assert "largest difference" in done.stdout
    assert f"written {tmp_path / 'model.pt2'}" in done.stdout


def test_the_accuracy_of_several_labels_counts_those_that_are_known() -> None:
    targets = torch.tensor([[1, 0, torch.nan], [0, -100, 1]])
    reference: Any = SimpleNamespace(samples=lambda: [((), targets)])
    logits = torch.tensor([[1.0, 1, 1], [-1, 1, 1]])
    assert accuracy(reference, lambda: logits) == pytest.approx(3 / 4)
    targets[:] = torch.nan
    with pytest.raises(InputError, match="--quantize int8: all targets of the validation part are unknown: leave it"):
        accuracy(reference, lambda: logits)


@pytest.mark.parametrize(("targets", "more"), [(torch.zeros(1, 2), {"independent": True}), (torch.zeros(1), {})])
def test_a_hub_folder_is_told_of_labels_that_are_independent(targets: Tensor, more: dict[str, bool]) -> None:
    given: list[dict[str, Any]] = []
    net = SimpleNamespace(write_huggingface=lambda *_, **options: given.append(options))
    inference = SimpleNamespace(task=SimpleNamespace(net=net, num_classes=2))
    reference: Any = SimpleNamespace(inference=inference, labels=["a", "b"], tokenizer=None, max_length=9)
    reference.samples, reference.net = lambda _: [((), targets)], lambda: torch.zeros(1, 2)
    formats.huggingface_folder(reference, Path("folder"))
    assert given == [more]


@pytest.mark.parametrize(
    ("kind", "names", "own", "expected"),
    [
        ("image", ("pixels",), {}, "image.resize((6, 8), Image.Resampling.BILINEAR)"),
        ("image", ("pixels",), {"image_example": "mirror(image.resize({size}))"}, "mirror(image.resize((6, 8)))"),
        ("text", ("tokens", "mask"), {}, "mask = np.ones_like(tokens, dtype=bool)"),
        ("text", ("tokens", "mask"), {"mask_example": "tokens > 0"}, "mask = tokens > 0"),
        ("table", ("values",), {"columns": ("a\nraise SystemExit", "b")}, "with the columns a\\nraise SystemExit, b\n"),
    ],
)
def test_the_program_prepares_inputs_as_the_data_says(
    kind: str, names: tuple[str, ...], own: dict[str, str], expected: str
) -> None:
    inference = SimpleNamespace(data=SimpleNamespace(**own), task=None)
    example = (torch.zeros(1, 3, 8, 6) if kind == "image" else torch.zeros(1, 2),) * len(names)
    given: Any = {"kind": kind, "names": names, "inference": inference, "example": example, "labels": []}
    reference: Any = SimpleNamespace(**given, tokenizer=None, max_length=None)
    assert expected in "\n".join(formats._example_lines(reference, Path("model.onnx"), "onnxruntime", "run()"))


@pytest.mark.parametrize(
    ("kind", "names", "shown"),
    [("file", ("values",), "(1, 3, 4)"), ("table", ("values", "input_1"), "(1, 3, 4)(1,)int64")],
)
def test_a_program_has_zeros_for_inputs_that_it_cannot_read(
    kind: str, names: tuple[str, ...], shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = (torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))[: len(names)]
    inference = SimpleNamespace(data=SimpleNamespace(columns=["a", "b"]), task=None)
    reference: Any = SimpleNamespace(
        kind=kind, names=names, inference=inference, example=inputs, labels=[], tokenizer=None, max_length=None
    )
    described = " + ".join(["str(values.shape)", "str(input_1.shape) + str(input_1.dtype)"][: len(names)])
    lines = formats._example_lines(reference, Path("model.onnx"), "math", f"[{described}]")
    monkeypatch.setattr(sys, "argv", ["model.example.py"])
    exec("\n".join(lines))
    assert capsys.readouterr().out.strip() == shown
    assert "columns" not in "".join(lines)
    assert f"what SimpleNamespace.prepare returns for one {kind}" in lines[1]
