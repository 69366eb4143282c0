"""Loads a checkpoint for prediction, generation, export and serving."""

import math
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from PIL import Image
from torch import Tensor, nn

from src.engine.data.loading import IGNORED
from src.engine.deploy.prepare import Inputs, Normalise, kind_of, prepare_inputs
from src.engine.deploy.rebuild import build, load_model
from src.engine.runs.checkpoint import (
    PATHS,
    check_names,
    checkpoint_errors,
    own_configuration,
    read_checkpoint,
    restore_data,
)
from src.engine.runs.runs import find_checkpoint
from src.engine.runs.trust import Trust, allowed_configuration, names_in
from src.engine.system.addresses import local_name
from src.engine.system.batches import gathered, labels_of
from src.engine.system.classes import Tree, import_class, nearest, parameters_of
from src.engine.system.errors import GUIDE, InputError, SampleError, constructor_errors
from src.engine.training.hyperparameters import check_limits

NOT_FINITE = "the model's output is not a finite number"

Row = dict[str, Any]


class Inference(LightningModule):
    """The task of a checkpoint, with the preprocessing of its DataModule.

    Args:
        given: path of a checkpoint, or `best` or `last` of the newest run in `logs/`.
        ability: name of a method that the task must have.
        data: arguments of the DataModule that replace those of the run.
        trust: modules outside this project whose classes the checkpoint may use.

    `kind` is the type of input: `prompt` for a language model, else the DataModule's `input_kind`. `labels` are the
    DataModule's: names of classes or targets. If `is_scored`, the inputs have targets, and `scores` are the task's
    metrics after predicting.

    Raises:
        InputError: the checkpoint is missing or cannot be loaded, or its DataModule cannot prepare single inputs.
    """

    task: Any

    def __init__(
        self, given: str, ability: str = "predict_step", data: Tree | None = None, trust: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.path, run = find_checkpoint(local_name(given))
        checkpoint = read_checkpoint(str(self.path))
        own = own_configuration(checkpoint, run)
        trusted = Trust(tuple(trust), frozenset(names_in(own)), paths=bool(own))
        self.task = load_model(checkpoint, ability, str(self.path), trusted)
        methods = ("forward",) if ability == "forward" else ("predict_step", "forward")
        if not any(is_overridden(name, self.task, LightningModule) for name in methods):
            name = type(self.task).__name__
            raise InputError(f"--ckpt_path {self.path} is of {name}, which has no method forward; {GUIDE}")
        saved, self.spec, unused = allowed_configuration(checkpoint, own, trusted, str(self.path))
        spec, data = saved.get("data") or {}, data or {}
        cls = import_class(spec.get("class_path", ""))
        if not isinstance(cls, type):
            why = f"has no DataModule, whose method prepare reads the inputs; {GUIDE}"
            if not saved:
                why = "does not say which data it has: only those of src.train do; in Python use load_from_checkpoint"
            raise InputError(f"--ckpt_path {given} {why}")
        known = parameters_of(cls)
        if wrong := next((name for name in data if name not in known), None):
            raise InputError(f"--data.{wrong}: {cls.__name__} has no such argument{nearest(wrong, known)}")
        # Its tokenizer is saved in the checkpoint.
        unused = [name for name in unused if name.startswith("data.") and name != "data.tokenizer"]
        self.missing_paths = [name for name in unused if name.split(".")[1] not in data]
        needed = {f"data.{one.name}" for one in known.values() if one.default is one.empty}
        for name in self.missing_paths:
            if name in needed or not PATHS.search(name.rpartition(".")[2]):  # `prepare` may use others than paths
                raise missing_argument(name, "its saved value is or looks like a path")
        given_data = " ".join(f"--data.{name} {value}" for name, value in data.items())
        problem = {"problem": f"with {given_data}"} if data else {}
        with checkpoint_errors(str(self.path), **problem), constructor_errors():
            self.data: Any = build({**spec, "init_args": {**spec.get("init_args", {}), **data}})
        with checkpoint_errors(str(self.path)):
            restore_data(checkpoint, self.data)
            check_limits(getattr(self.task, "net", self.task), getattr(self.data, "tokenizer", None))
        check_names(checkpoint, self.data)
        only_writes = hasattr(self.data, "tokenizer") and not hasattr(self.data, "prepare")
        writes = hasattr(self.task, "check_sampling") or (hasattr(self.task, "generate") and only_writes)
        self.kind = "prompt" if writes or ability == "generate" else kind_of(self.data)
        self.labels = labels_of(self.data)
        features = Normalise(self.data) if self.kind == "image" else getattr(self.data, "features", None)
        # A copy, because the data stays on the CPU.
        self.features: Any = deepcopy(features) if isinstance(features, nn.Module) else None
        if self.labels and getattr(self.task, "takes_names", True):
            self.name_classes(self.labels)
        if len(set(self.labels)) < len(self.labels):
            raise InputError(f"--ckpt_path {given}: its data has several labels of the same name")
        classes = None if hasattr(self.task, "name_classes") else getattr(self.task, "num_classes", None)
        if self.labels and classes not in (None, len(self.labels)):
            raise InputError(f"--ckpt_path {given}: its data has {len(self.labels)} labels, its task {classes} classes")
        self._is_checked = False
        self.is_scored = False
        self.scores: dict[str, float] = {}
        self.eval()

    def name_classes(self, labels: list[str] | None, option: str = "labels") -> None:
        """Set the classes of a model that compares images with texts; `option` gives them, for messages.

        Raises:
            InputError: the model has fixed classes or takes none, they are missing, or it cannot tell them apart.
        """
        name = type(self.task).__name__
        if not hasattr(self.task, "name_classes"):
            if labels and labels != self.labels:
                raise InputError(f"{name} has fixed classes: give it no labels")
            return
        if not getattr(self.task, "takes_names", True):
            raise InputError(f"{name} has no texts to name classes with: it can only be trained, validated and tested")
        if labels:
            texts = self.data.prepare_texts(labels)
            if labels is not self.labels:
                _check_labels(labels, texts)
            self.task.eval().name_classes(*texts)
            self.labels = labels
        elif not self.labels:
            raise InputError(f"{name} has no classes: give {option}, one text per class")

    @property
    def net(self) -> nn.Module:
        """The model's `forward` on raw pixels (B, C, H, W), tokens (B, T) and mask (B, T), tokens (B, T) or values."""
        return self.on_prepared(self.task)

    def on_prepared(self, model: nn.Module) -> nn.Module:
        """Wrap a model for loader batches so that it takes what `prepare` returns."""
        return model if self.features is None else nn.Sequential(self.features, model)

    def prepare(self, inputs: list[Any]) -> tuple[Inputs, list[str]]:
        """Tensors of a batch of raw inputs (pixels not normalised), and a note for each input."""
        return prepare_inputs(self.data, inputs)

    def predictions(self, inputs: Inputs) -> Any:
        """What the model predicts for a prepared batch on this device, in one row per input."""
        inputs = self._network_inputs(inputs)
        if _has(self.task, "predictions"):
            return self.task.predictions(*inputs)
        name = "predict_step" if is_overridden("predict_step", self.task, LightningModule) else "forward"
        with self.call_errors(name, inputs):
            if name == "forward":
                return self.task(*inputs)
            return self.task.predict_step(inputs[0] if len(inputs) == 1 else inputs, 0)

    def _network_inputs(self, inputs: Inputs) -> Inputs:
        """Turn what `prepare` returns into network inputs; images and features in the weights' dtype."""
        if self.features is None:
            return inputs
        dtype = next((one.dtype for one in self.task.parameters() if one.is_floating_point()), torch.float32)
        inputs = tuple(one.float() if one.is_floating_point() else one for one in inputs)
        with torch.autocast(inputs[0].device.type, enabled=False):
            return (self.features.float()(*inputs).to(dtype),)

    @contextmanager
    def call_errors(self, method: str, inputs: Inputs) -> Iterator[None]:
        """Turn errors of a model that does not take the inputs of its data into InputErrors."""
        try:
            yield
        except (InputError, torch.OutOfMemoryError):
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            *_, (frame, _) = traceback.walk_tb(error.__traceback__)
            shapes = ", ".join(str(tuple(one.shape)) for one in inputs)
            raise InputError(
                f"{type(self.task).__name__}.{method} does not take the inputs of {type(self.data).__name__}, of shape"
                f" {shapes} ({type(error).__name__} in {frame.f_code.co_qualname}: {error}); {GUIDE}"
            ) from error

    def check_on_sample(self) -> None:
        """Check on one input that a model takes what `prepare` returns and gives one row; a `Task` does."""
        columns = dict.fromkeys(getattr(self.data, "columns", ()), 0.0)
        samples = {"table": columns, "text": "text", "image": Image.new("RGB", (64, 64), "grey")}
        if getattr(self.data, "category_columns", ()):
            del samples["table"]  # which categories it takes is not known
        if self.kind in samples and not _has(self.task, "predictions"):
            try:
                inputs, _ = self.prepare([samples[self.kind]])
            except SampleError:  # the data takes other texts, images or numbers
                return
            with torch.inference_mode():
                self.rows(self.predictions(tuple(one.to(self.device) for one in inputs)), 1)

    def rows(self, predictions: Any, count: int, sizes: Sequence[tuple[int, int]] = ()) -> list[Row]:
        """Predictions as one dict per input: names and texts, numbers, lists of them, dicts of numbers, or a mask.

        Args:
            predictions: from `predictions`.
            count: number of inputs.
            sizes: width and height of each image: `boxes` of a row are scaled from shares of them to pixels.

        Raises:
            InputError: the model has no method `prediction_rows` and its predictions are not tensors (B, ...), it gives
                another number of rows, or a row has a tensor that is not a mask.
        """
        name = type(self.task).__name__
        if not _has(self.task, "prediction_rows"):
            tensors = {"output": predictions} if isinstance(predictions, Tensor) else predictions
            if isinstance(tensors, dict) and all(isinstance(one, Tensor) and one.ndim for one in tensors.values()):
                columns = [one.float().tolist() for one in tensors.values()]
                rows = [dict(zip(tensors, values, strict=True)) for values in zip(*columns, strict=True)]
            else:
                raise InputError(
                    f"{name} predicts {type(predictions).__name__}: return a tensor (B, ...) or a dict of them, or"
                    f" write a method prediction_rows; {GUIDE}"
                )
        else:
            found = self.task.prediction_rows(predictions, self.labels)
            rows = [{key: _plain(value, f"{name}: {key}") for key, value in row.items()} for row in found]
        if len(rows) != count:
            raise InputError(f"{name} gives {len(rows)} rows for {count} inputs: give one row per input; {GUIDE}")
        for row, (width, height) in zip(rows, sizes, strict=False):
            for box in row.get("boxes", ()):
                box |= {name: box[name] * (width if name[0] == "x" else height) for name in ("x1", "y1", "x2", "y2")}
        return rows

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[Row] | None:
        """The rows of a batch of inputs to predict on; None if no input can be used."""
        inputs, targets = batch["inputs"], batch["targets"]
        if inputs is None:
            return None
        if targets is not None:
            try:
                self.task.test_step((*self._network_inputs(inputs), targets), batch_idx)
            except InputError:  # without any label of a position, the targets have no shape
                if targets.is_floating_point() or (targets != IGNORED).any():
                    raise
        if not self._is_checked and not _has(self.task, "predictions"):  # it might take two inputs for a pair
            self.predictions(tuple(one[:1] for one in inputs))
        self._is_checked = True
        return self.rows(self.predictions(inputs), len(inputs[0]), batch["sizes"])

    def on_predict_epoch_end(self) -> None:
        """Compute `scores`, while the metrics are still on the device."""
        if not self.is_scored:
            return
        seen = gathered(self.task.metrics.has_seen("test"))
        if any(seen) and not all(seen):
            raise InputError("a process has no input that can be used: give more inputs, or --devices 1")
        if all(seen):
            metrics = self.task.metrics["test"].compute()
            self.scores = {name: value.item() for name, value in metrics.items()}


def missing_argument(name: str, why: str) -> InputError:
    """The error for an argument of the data that is not read from a checkpoint."""
    option = ".".join(name.split(".")[:2])  # of a class within, all of it
    return InputError(
        f"--{option} is missing: {why}; paths are read only from your own runs in logs/: give --{option}=VALUE"
    )


def _has(task: Any, method: str) -> bool:
    return callable(getattr(task, method, None))  # a plain module may have a list of that name


def _check_labels(labels: Sequence[str], texts: Inputs) -> None:
    """Raise InputError if a label is empty to the model, or the same as another one."""
    seen: dict[Any, str] = {}
    for label, *row in zip(labels, *texts, strict=True):
        if not label.strip() or (row[-1].dtype == torch.bool and not row[-1].any()):
            raise InputError(f"label {label!r} is empty to this model: give a text with words it was trained on")
        key = str([one.tolist() for one in row])
        if key in seen:
            both = f"labels {seen[key]!r} and {label!r}"
            raise InputError(f"{both} are the same to this model: give texts that differ in words it was trained on")
        seen[key] = label


def is_finite(value: Any) -> bool:
    """Whether all numbers in a prediction are finite."""
    if isinstance(value, dict | list):
        return all(map(is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _plain(value: Any, place: str) -> Any:
    """A value of a row, with numbers of torch and NumPy as Python's; a mask (H, W) stays a tensor."""
    if isinstance(value, dict):
        return {key: _plain(one, place) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, place) for one in value]
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        return value.item()
    is_mask = isinstance(value, Tensor) and value.ndim == 2 and not value.is_floating_point()
    if isinstance(value, Tensor | np.ndarray) and not is_mask:
        raise InputError(f"{place} is an array {tuple(value.shape)}: give lists, as tolist() does, or a mask (H, W)")
    return value


def mask_image(mask: Tensor) -> Image.Image:
    """Class numbers (H, W) as a grey image; of 16 bits if there are more than 256 classes."""
    numbers = mask.cpu().numpy()
    return Image.fromarray(numbers.astype(np.uint8 if numbers.max(initial=0) < 256 else np.uint16))
