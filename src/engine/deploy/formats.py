"""Export formats: writes each one and loads it in its runtime."""

import inspect
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import instantiate_module
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.export import Dim

from src.engine.deploy.inference import Inference, missing_argument
from src.engine.deploy.prepare import Inputs
from src.engine.deploy.rebuild import completed
from src.engine.system.classes import import_class
from src.engine.system.errors import GUIDE, InputError

Sample = tuple[Inputs, Tensor]
Runtime = Callable[..., Tensor]
"""An exported file, loaded: network inputs -> logits."""
Exported = tuple[Runtime, list[str]]
"""The same, and the lines of an example program that uses the file."""

CALIBRATION = 512  # training samples to measure the range of activations
INPUT_NAMES = {"image": ("pixels",), "text": ("tokens", "mask"), "prompt": ("tokens",)}  # of other kinds: values


class Reference:
    """A checkpoint's network in float32 on the CPU, and samples of its data for comparison."""

    def __init__(self, inference: Inference) -> None:
        if hasattr(inference.task, "name_classes"):
            raise InputError(f"{type(inference.task).__name__} compares images with texts, which no format supports")
        self.inference = inference
        self.kind = inference.kind
        self.net = inference.net.float().eval()
        self.labels = inference.labels
        if inference.missing_paths:
            raise missing_argument(inference.missing_paths[0], "the export is compared on data")
        # A hook of the DataModule may ask whether the Trainer trains.
        with silenced():
            inference.data.trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
        inference.data.prepare_data()
        inference.data.setup("fit")
        self.has_logits = self.kind == "prompt" or hasattr(inference.task, "num_classes")
        tokenizer = getattr(inference.data, "tokenizer", None)
        self.tokenizer: Any = tokenizer if hasattr(tokenizer, "example") else None  # not one of another library
        self.max_length = getattr(inference.data, "max_length", None) if self.kind == "text" else None
        self.example = self._example()
        known, count = INPUT_NAMES.get(self.kind, ("values",)), len(self.example)
        self.names = [*known[:count], *(f"input_{number}" for number in range(len(known), count))]

    def samples(self, count: int | None = None, part: str = "val") -> list[Sample]:
        """Batches of raw inputs and targets: the first `count` samples of a part, or all."""
        data, features = self.inference.data, self.inference.features
        if not is_overridden(f"{part}_dataloader", data, LightningDataModule):
            raise InputError(f"{type(data).__name__} has no method {part}_dataloader to compare the export on; {GUIDE}")
        found: list[Sample] = []
        loaders = getattr(data, f"{part}_dataloader")()
        for batch in loaders[0] if isinstance(loaders, list | tuple) else loaders:
            # With `features`, the batch of the loader has the inputs of `net`.
            has_raw = self.kind != "image" and features is not None
            inputs, targets = self._split(batch if has_raw else data.on_after_batch_transfer(batch, 0))
            if self.kind == "image":
                # Undo the normalisation; raw pixels are whole numbers.
                pixels = ((inputs[0] * features.std + features.mean) * 255).round()
                inputs = [pixels.clamp(0, 255).to(torch.uint8)]
            needed = len(targets) if count is None else count - sum(len(one) for _, one in found)
            found.append((tuple(one[:needed] for one in inputs), targets[:needed]))
            if needed <= len(targets) and count is not None:
                break
        return found

    def _split(self, batch: Any) -> tuple[list[Tensor], Tensor]:
        """The network's inputs in a batch, and its last part: the targets, or the inputs if there are none."""
        parts = [batch] if isinstance(batch, Tensor) else batch
        if not isinstance(parts, list | tuple) or not all(isinstance(one, Tensor) for one in parts):
            name, kind = type(self.inference.data).__name__, type(batch).__name__
            raise InputError(f"{name} has batches of {kind}: export needs tensors, inputs first; {GUIDE}")
        parameters = inspect.signature(self.inference.task.forward).parameters.values()
        count = sum(one.kind is one.POSITIONAL_OR_KEYWORD and one.default is one.empty for one in parameters)
        return list(parts[: count or max(1, len(parts) - 1)]), parts[-1]

    def _example(self) -> Inputs:
        """A few samples to trace the network with."""
        inputs, _ = self.samples(3)[0]
        if len(inputs[0]) == 1:
            inputs = tuple(one.repeat(2, *[1] * (one.dim() - 1)) for one in inputs)
        with self.inference.call_errors("forward", inputs), torch.no_grad():
            output = self.net(*inputs)
        if not isinstance(output, Tensor) or not output.ndim:
            name = type(self.inference.task).__name__
            what = "one number" if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"{name}.forward returns {what}: export needs one tensor (B, ...); {GUIDE}")
        self.outputs = max(1, output[0].numel())  # of one sample
        return inputs

    def free_dimensions(self) -> dict[int, Any]:
        """The dimensions of each input that may vary."""
        dimensions = {0: Dim("batch")}
        if self.kind in ("text", "prompt"):
            max_length = getattr(getattr(self.inference.task, "net", None), "block_size", None)
            dimensions[1] = Dim("length", max=max_length) if max_length else Dim("length")
        return dimensions

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """The free dimensions of the arguments of `net`."""
        shapes = (self.free_dimensions(),) * len(self.names)
        parameters = inspect.signature(self.net.forward).parameters.values()
        return (shapes,) if any(one.kind is one.VAR_POSITIONAL for one in parameters) else shapes


@torch.no_grad()
def largest_difference(reference: Reference, runtime: Runtime, samples: list[Sample]) -> float:
    """The largest difference of an output from the checkpoint's, by the task's `difference` if it has one.

    Infinity if an output is NaN. For outputs that are not logits it is relative to the largest one.
    """
    task: Any = reference.inference.task
    with exporting(reference):
        outputs = [runtime(*inputs) for inputs, _ in samples]
    others = [reference.net(*inputs) for inputs, _ in samples]
    if hasattr(task, "difference"):
        largest = torch.stack([*map(task.difference, outputs, others)]).max()
    else:
        found, expected = (torch.cat([one.flatten() for one in some]) for some in (outputs, others))
        scale = 1.0 if reference.has_logits else expected.abs().max().clamp(min=1)
        largest = (found - expected).abs().max() / scale
    return float(largest.nan_to_num(nan=torch.inf))


@torch.no_grad()
def accuracy(reference: Reference, runtime: Runtime) -> float:
    """Accuracy of an exported classifier on the validation part, in [0, 1]."""
    correct = total = 0
    for inputs, targets in reference.samples():
        counted = targets >= 0  # false for -100 and NaN
        logits = runtime(*inputs)
        preds = (logits > 0) if logits.shape == targets.shape else logits.argmax(dim=1)
        correct += int((preds == targets)[counted].sum())
        total += int(counted.sum())
    if not total:
        raise InputError("--quantize int8: all targets of the validation part are unknown: leave it out")
    return correct / total


def onnx_file(reference: Reference, path: Path) -> Exported:
    """Write an ONNX file for onnxruntime, with torch's exporter."""
    program = torch.onnx.export(
        reference.net,
        reference.example,
        dynamo=True,
        dynamic_shapes=reference.dynamic_shapes(),
        input_names=reference.names,
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    program.save(path)
    return _load_onnx(reference, path)


def quantized_file(reference: Reference, path: Path) -> Exported:
    """Quantize an ONNX file to 8 bits: weights, and for images also activations, calibrated on training data."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    original, prepared = path.rename(f"{path}.whole"), Path(f"{path}.prepared")
    if reference.kind == "image":
        batches = iter([{"pixels": one[0].numpy()} for one, _ in reference.samples(CALIBRATION, "train")])
        quant_pre_process(original, prepared, skip_symbolic_shape=True)
        calibration = SimpleNamespace(get_next=lambda: next(batches, None))
        quantization.quantize_static(prepared, path, calibration, per_channel=True)
        prepared.unlink()
    else:
        quantization.quantize_dynamic(original, path, weight_type=quantization.QuantType.QInt8)
    original.unlink()
    return _load_onnx(reference, path)


def _load_onnx(reference: Reference, path: Path) -> Exported:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    for (axis, dimension), one in product(reference.free_dimensions().items(), session.get_inputs()):
        if isinstance(one.shape[axis], int):  # torch.onnx fixes a dimension rather than fail
            raise _cannot_export(reference, f"it fixes the {dimension.__name__} at {one.shape[axis]}")
    names = [one.name for one in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        values = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, values)[0])

    load = f'onnxruntime.InferenceSession("{path.name}")'
    arguments = ", ".join(f'"{name}": {name}' for name in reference.names)
    lines = _example_lines(reference, path, "onnxruntime", f"{load}.run(None, {{{arguments}}})[0]")
    return run, lines


def torch_file(reference: Reference, path: Path) -> Exported:
    """Write a program of torch.export."""
    # Private (torch 2.15): by default a GRU or LSTM is exported as a copy of its cell for each position.
    from torch.export._patches import register_gru_while_loop_decomposition, register_lstm_while_loop_decomposition

    with register_gru_while_loop_decomposition(), register_lstm_while_loop_decomposition():
        program = torch.export.export(reference.net, reference.example, dynamic_shapes=reference.dynamic_shapes())
    torch.export.save(program, path)
    module: Any = torch.export.load(path).module()
    arguments = ", ".join(f"torch.from_numpy({name})" for name in reference.names)
    lines = _example_lines(reference, path, "torch", f'torch.export.load("{path.name}").module()({arguments}).detach()')
    return module, lines


def safetensors_file(reference: Reference, path: Path) -> Exported:
    """Write the weights of the task, and a .yaml file with its class and arguments."""
    from safetensors.torch import load_model, save_model

    inference = reference.inference
    save_model(inference.task, str(path))
    spec = inference.spec
    text = yaml.safe_dump({"model": spec, "labels": inference.labels})
    path.with_name(f"{path.name}.yaml").write_text(text, encoding="utf-8")
    make = partial(instantiate_module, import_class(spec["class_path"]), spec["init_args"])
    loaded, completes = completed(make, inference.task.state_dict())
    load_model(loaded, str(path))
    loaded.eval()
    net = inference.on_prepared(loaded).eval()
    module, _, name = spec["class_path"].rpartition(".")
    lines = [
        f"import yaml; from {module} import {name}",
        "from lightning.pytorch.cli import instantiate_module; from safetensors.torch import load_model",
        f'arguments = yaml.safe_load(open("{path.name}.yaml"))["model"]["init_args"]',
        f"task = instantiate_module({name}, arguments)"
        + f'{"; task.configure_model()" if completes else ""}; load_model(task, "{path.name}")',
        "print(task.eval())",
    ]
    return net, lines


def huggingface_folder(reference: Reference, path: Path) -> Exported:
    """Write a folder that `transformers` can load."""
    net: Any = getattr(reference.inference.task, "net", None)
    if not hasattr(net, "write_huggingface"):
        raise InputError(f"--format huggingface: {type(net).__name__} is not a transformers model; give onnx or torch")
    more = {"independent": True} if _has_independent_labels(reference) else {}
    return net.write_huggingface(path, reference.labels, reference.tokenizer, reference.max_length, **more)


WRITERS = {"onnx": onnx_file, "torch": torch_file, "safetensors": safetensors_file, "huggingface": huggingface_folder}


def _example_lines(reference: Reference, path: Path, package: str, call: str) -> list[str]:
    """A program that predicts on an image file, a text or numbers from the command line, or on zeros to replace."""
    data, imports = reference.inference.data, f"import numpy as np, {package}, sys"
    known = len(INPUT_NAMES.get(reference.kind, ("values",)))  # inputs that the program reads
    if reference.kind == "image":
        imports += "; from PIL import Image, ImageOps"
        channels, height, width = reference.example[0].shape[1:]
        mode, order = ("L", "[None, None]") if channels == 1 else ("RGB", ".transpose(2, 0, 1)[None]")
        needs = getattr(data, "example_needs", "no transparency")
        deep = ", 8 bits per channel" if getattr(data, "value_ranges", None) else ""
        fitted = getattr(data, "image_example", "image.resize({size}, Image.Resampling.BILINEAR)")
        reads = [
            f'image = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("{mode}")  # expects {needs}{deep}',
            f"pixels = np.array({fitted.format(size=(width, height))}){order}",
        ]
    elif hasattr(data, "file_example"):
        reads = list(data.file_example)
    elif reference.kind == "table" and [(one.ndim, one.dtype) for one in reference.example] == [(2, torch.float32)]:
        names = getattr(data, "columns", ())
        columns = ", ".join(json.dumps(str(name), ensure_ascii=False)[1:-1] for name in names)  # without line breaks
        reads = [f"# the numbers that {type(data).__name__}.prepare returns for a row with the columns {columns}"]
        reads.append("values = np.array([sys.argv[1:]], dtype=np.float32)")
    elif reference.kind in ("table", "file"):
        reads = [f"# in place of the zeros: what {type(data).__name__}.prepare returns for one {reference.kind}"]
        known = 0
    else:
        ids, is_text = "sys.argv[1:]", reference.kind == "text"
        if reference.tokenizer is None:
            imports += f"  # give the tokens that {type(data).__name__}.prepare returns for a text"
        else:
            file = f"{path.name}.tokenizer.json"
            imported, ids = reference.tokenizer.example(file, is_text, reference.max_length)
            imports += f"; {imported}" if imported else ""
        how = getattr(data, "mask_example", "np.ones_like(tokens, dtype=bool)")
        mask = f"; mask = {how}" if "mask" in reference.names else ""
        reads = [f"tokens = np.array([{ids}])", f"tokens = tokens.astype(np.int64){mask}"]
    for name, values in list(zip(reference.names, reference.example, strict=True))[known:]:
        kind = str(values.dtype).removeprefix("torch.")
        reads.append(f"{name} = np.zeros({(1, *values.shape[1:])}, dtype=np.{kind})")
    return [imports, *reads, f"logits = {call}", _answer(reference)]


def _answer(reference: Reference) -> str:
    """The last line of an example program."""
    labels = json.dumps(reference.labels, ensure_ascii=False)
    if not hasattr(reference.inference.task, "num_classes") or not reference.labels:
        return "print(logits.shape)" if reference.kind == "prompt" else "print(logits[0])"
    if _has_independent_labels(reference):
        return f"print(dict(zip({labels}, 1 / (1 + np.exp(-np.array(logits[0]))))))"
    return f"print({labels}[logits[0].argmax()])" if len(_shape(reference)) == 2 else "print(logits[0].argmax(0))"


def _shape(reference: Reference) -> torch.Size:
    """Of the output for a sample."""
    with torch.no_grad():
        return torch.Size(reference.net(*reference.samples(1)[0][0]).shape)


def _has_independent_labels(reference: Reference) -> bool:
    """Whether an input may have several of the labels: each logit has a target of its own."""
    is_classifier = hasattr(reference.inference.task, "num_classes") and reference.labels
    return bool(is_classifier) and _shape(reference) == reference.samples(1)[0][1].shape


@contextmanager
def exporting(reference: Reference) -> Iterator[None]:
    """Hide what exporters print; an error of theirs becomes an InputError of one line."""
    try:
        with silenced(), torch.no_grad():
            yield
    except (InputError, OSError):
        raise
    except Exception as error:
        raise _cannot_export(reference, _reason(error)) from error


def _cannot_export(reference: Reference, reason: str) -> InputError:
    task: Any = reference.inference.task
    name = type(getattr(task, "net", task)).__name__
    return InputError(
        f"{name} cannot be exported in this format ({reason}): try another --format: onnx, torch or safetensors"
    )


@contextmanager
def silenced() -> Iterator[None]:
    """Hide warnings and log lines."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)


def _reason(error: BaseException) -> str:
    """What the first of a chain of errors says, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    if fixed := re.search(r"marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)", text):
        return f"it fixes the {fixed[1]} at {fixed[2]}"
    return f"{type(error).__name__}: {text[:200]}"
