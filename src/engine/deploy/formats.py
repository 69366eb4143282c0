"""Networks in the formats of others: how each is written, and how its own runtime reads it."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import instantiate_module
from torch import Tensor, nn
from torch.export import Dim

from src.engine.data.loading import IGNORED
from src.engine.deploy.inference import Inference, Inputs
from src.engine.deploy.pixels import Pixels
from src.engine.system.classes import import_class
from src.engine.system.errors import InputError

Sample = tuple[Inputs, Tensor]
Runtime = Callable[..., Tensor]

CALIBRATION = 512  # training samples that say how large activations become
NAMES = {"image": ("pixels",), "text": ("tokens", "mask"), "prompt": ("tokens",)}


class Float32:
    """A checkpoint's network in float32 on the CPU, and the real samples it is compared on.

    Args:
        inference: the checkpoint.
    """

    def __init__(self, inference: Inference) -> None:
        if hasattr(inference.task, "name_classes"):
            raise InputError(f"{type(inference.task).__name__} compares images with texts, which no format here holds")
        self.inference = inference
        self.kind = inference.kind
        self.net = inference.net.float().eval()
        self.labels = inference.labels
        inference.data.prepare_data()
        inference.data.setup("validate")
        self.tokenizer: Any = getattr(inference.data, "tokenizer", None)

    def samples(self, count: int | None = None, part: str = "val") -> list[Sample]:
        """Batches of inputs as they are in files, and targets: the first ones, or all."""
        found: list[Sample] = []
        for batch in getattr(self.inference.data, f"{part}_dataloader")():
            *inputs, targets = batch
            if self.kind == "image":
                # What was normalised were whole numbers.
                pixels = ((inputs[0] * self.inference.pixels.std + self.inference.pixels.mean) * 255).round()
                inputs = [pixels.clamp(0, 255).to(torch.uint8)]
            left = len(targets) if count is None else count - sum(len(one) for _, one in found)
            found.append((tuple(one[:left] for one in inputs), targets[:left]))
            if left <= len(targets) and count is not None:
                break
        return found

    def example(self) -> Inputs:
        """A few samples to trace the network with."""
        inputs, _ = self.samples(3)[0]
        if len(inputs[0]) == 1:
            inputs = tuple(one.repeat(2, *[1] * (one.dim() - 1)) for one in inputs)
        return inputs

    def sizes(self) -> tuple[dict[int, Any], ...]:
        """Which dimensions of each input are free."""
        if self.kind == "image":
            return ({0: Dim("batch")},)
        longest = getattr(self.inference.task.net, "block_size", None)
        free = {0: Dim("batch"), 1: Dim("length", max=longest) if longest else Dim("length")}
        return (free,) * len(NAMES[self.kind])


class Exported:
    """A file that has been written, as its own runtime computes it.

    Args:
        reference: what it was made from.
        runtime: the inputs of the network -> its logits.
        lines: a program of five lines that uses the file.
        tokenizer: whether a tokenizer stands beside the file.
    """

    def __init__(self, reference: Float32, runtime: Runtime, lines: list[str], tokenizer: bool = True) -> None:
        self.reference = reference
        self.runtime = runtime
        self.lines = lines
        self.tokenizer = tokenizer

    @torch.no_grad()
    def largest_difference(self, samples: list[Sample]) -> float:
        """The largest difference of a logit from the checkpoint's, or infinity where one is no number."""
        differences = [(self.runtime(*inputs) - self.reference.net(*inputs)).abs().max() for inputs, _ in samples]
        return float(torch.stack(differences).nan_to_num(nan=torch.inf).max())

    @torch.no_grad()
    def accuracy(self) -> float:
        """The share of the targets of the validation part that are the largest logit."""
        right = total = 0
        for inputs, targets in self.reference.samples():
            counts = targets != IGNORED
            right += int((self.runtime(*inputs).argmax(dim=-1) == targets)[counts].sum())
            total += int(counts.sum())
        return right / total

    def write_beside(self, path: Path) -> None:
        """The tokenizer and the example."""
        tokenizer = self.reference.tokenizer
        if self.tokenizer and tokenizer is not None and tokenizer.json is not None:
            path.with_name(f"{path.name}.tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
        example = path.with_name(f"{path.name}.example.py")
        example.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def onnx_file(reference: Float32, path: Path) -> Exported:
    """ONNX by torch's exporter, for onnxruntime."""
    with _quiet():
        program = torch.onnx.export(
            reference.net,
            reference.example(),
            dynamo=True,
            dynamic_shapes=reference.sizes(),
            input_names=NAMES[reference.kind],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.save(path)
    return _onnx(reference, path)


def quantized_file(reference: Float32, path: Path) -> Exported:
    """An ONNX file in 8 bits: weights alone for text, activations too, as training samples have them, for images."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    whole, prepared = path.rename(path.with_name("whole.onnx")), path.with_name("prepared.onnx")
    with _quiet():
        if reference.kind == "image":

            class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
                batches: Iterator[Sample] = iter(reference.samples(CALIBRATION, "train"))

                def get_next(self) -> dict[str, Any] | None:
                    batch = next(self.batches, None)
                    return None if batch is None else {"pixels": batch[0][0].numpy()}

            quant_pre_process(whole, prepared, skip_symbolic_shape=True)
            quantization.quantize_static(prepared, path, Calibration(), per_channel=True)
            prepared.unlink()
        else:
            quantization.quantize_dynamic(whole, path, weight_type=quantization.QuantType.QInt8)
    whole.unlink()
    return _onnx(reference, path)


def _onnx(reference: Float32, path: Path) -> Exported:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        values = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, values)[0])

    read = f'onnxruntime.InferenceSession("{path.name}")'
    fed = ", ".join(f'"{name}": {name}' for name in NAMES[reference.kind])
    lines = _example(reference, path, "onnxruntime", f"{read}.run(None, {{{fed}}})[0]")
    return Exported(reference, run, lines)


def torch_file(reference: Float32, path: Path) -> Exported:
    """A program of torch.export."""
    with _quiet():
        program = torch.export.export(reference.net, reference.example(), dynamic_shapes=reference.sizes())
    torch.export.save(program, path)
    module: Any = torch.export.load(path).module()
    fed = ", ".join(f"torch.from_numpy({name})" for name in NAMES[reference.kind])
    lines = _example(reference, path, "torch", f'torch.export.load("{path.name}").module()({fed}).detach()')
    return Exported(reference, module, lines)


def safetensors_file(reference: Float32, path: Path) -> Exported:
    """The weights of the task, and its class and arguments beside."""
    from safetensors.torch import load_model, save_model

    inference = reference.inference
    save_model(inference.task, str(path))
    spec = inference.spec
    text = yaml.safe_dump({"model": spec, "labels": inference.labels})
    path.with_name(f"{path.name}.yaml").write_text(text, encoding="utf-8")
    again: Any = instantiate_module(import_class(spec["class_path"]), spec["init_args"])
    load_model(again, str(path))
    again.eval()
    pixels = inference.pixels
    net: nn.Module = again.net
    if reference.kind == "image":
        net = Pixels(net, pixels.mean.flatten().tolist(), pixels.std.flatten().tolist()).eval()
    module, _, name = spec["class_path"].rpartition(".")
    lines = [
        f"import yaml; from {module} import {name}",
        "from lightning.pytorch.cli import instantiate_module; from safetensors.torch import load_model",
        f'arguments = yaml.safe_load(open("{path.name}.yaml"))["model"]["init_args"]',
        f'load_model(task := instantiate_module({name}, arguments), "{path.name}")',
        "print(task.eval())",
    ]
    return Exported(reference, net, lines)


def huggingface_folder(reference: Float32, path: Path) -> Exported:
    """A folder that `transformers` loads, written by the network itself.

    Raises:
        InputError: the network did not come from there.
    """
    net: Any = reference.inference.task.net
    if not hasattr(net, "write_huggingface"):
        raise InputError(f"--format huggingface: {type(net).__name__} is not of transformers; give onnx or torch")
    runtime, lines = net.write_huggingface(path, reference.labels, reference.tokenizer)
    return Exported(reference, runtime, lines, tokenizer=False)


def _example(reference: Float32, path: Path, package: str, call: str) -> list[str]:
    """Five lines that give the class of the file or the text they are called with."""
    labels = json.dumps(reference.labels, ensure_ascii=False)
    answer = f"print({labels}[logits[0].argmax()])" if reference.labels else "print(logits.shape)"
    if reference.kind == "image":
        channels, height, width = reference.example()[0].shape[1:]
        mode, order = ("L", "[None, None]") if channels == 1 else ("RGB", ".transpose(2, 0, 1)[None]")
        ground = "  # light ink on a dark ground" if channels == 1 else ""
        return [
            f"import numpy as np, {package}, sys; from PIL import Image",
            f'image = Image.open(sys.argv[1]).convert("{mode}").resize(({width}, {height})){ground}',
            f"pixels = np.array(image){order}",
            f"logits = {call}",
            answer,
        ]
    imported, ids = reference.tokenizer.example(f"{path.name}.tokenizer.json", reference.kind == "text")
    first = "; ".join(filter(None, (f"import numpy as np, {package}, sys", imported)))
    mask = "; mask = np.ones_like(tokens, dtype=bool)" if reference.kind == "text" else ""
    return [first, f"tokens = np.array([{ids}])", f"tokens = tokens.astype(np.int64){mask}", f"logits = {call}", answer]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of their own working."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
