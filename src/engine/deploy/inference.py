"""Loads a checkpoint for prediction, generation, export and serving."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from src.engine.deploy.pixels import Pixels
from src.engine.runs.checkpoint import (
    checkpoint_errors,
    load_model,
    model_arguments,
    own_configuration,
    read_checkpoint,
    restore_data,
    run_configuration,
)
from src.engine.runs.runs import find_checkpoint
from src.engine.runs.trust import Trust, names_in
from src.engine.system.classes import Tree, import_class, nearest
from src.engine.system.errors import InputError, constructor_errors
from src.engine.training.hyperparameters import check_limits

Inputs = tuple[Tensor, ...]


class Inference(LightningModule):
    """The task of a checkpoint, with the preprocessing of its DataModule.

    Args:
        given: path of a checkpoint, or `best` or `last` of the newest run in `logs/`.
        ability: name of a method that the task must have.
        data: arguments of the DataModule that replace those of the run.
        trust: modules outside this project whose classes the checkpoint may use.

    `kind` is the type of input: `image` or `text` for a classifier, `prompt` for a language model. `labels` are the
    class names of a classifier.

    Raises:
        InputError: the checkpoint is missing or cannot be loaded, or its DataModule cannot prepare single inputs.
    """

    def __init__(
        self, given: str, ability: str = "predict_step", data: Tree | None = None, trust: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.path = find_checkpoint(given)
        self.checkpoint = read_checkpoint(str(self.path))
        own = own_configuration(self.checkpoint, self.path.parent.parent if given in ("best", "last") else None)
        trusted = Trust(tuple(trust), frozenset(names_in(own)), paths=bool(own))
        task: Any = load_model(self.checkpoint, ability, str(self.path), trusted)
        self.task = task
        self.spec = model_arguments(self.checkpoint, trusted)
        with checkpoint_errors(str(self.path)):
            unused: list[str] = []
            saved = own or run_configuration(self.checkpoint, trusted, unused)
            # Its tokenizer is saved in the checkpoint.
            self.missing_paths = [
                name
                for name in unused
                if name.startswith("data.") and name != "data.tokenizer" and name[5:] not in (data or {})
            ]
            self.data: Any = _build_data(self.checkpoint, saved.get("data") or {}, data or {}, given)
            check_limits(task.net, getattr(self.data, "tokenizer", None))
        if hasattr(task, "generate"):
            self.kind = "prompt"
        elif hasattr(self.data, "prepare_image"):
            self.kind = "image"
        elif hasattr(self.data, "prepare_texts"):
            self.kind = "text"
        else:
            raise InputError(
                f"{type(self.data).__name__} cannot prepare single inputs: give it a method prepare_image or"
                " prepare_texts, as in MNISTDataModule and LabelledTextDataModule"
            )
        self.labels = [str(label) for label in getattr(self.data, "labels", ())]
        mean, std = getattr(self.data, "pixel_mean", (0.0,)), getattr(self.data, "pixel_std", (1.0,))
        self.pixels = Pixels(task.net, mean, std)
        if self.labels:
            self.name_classes(self.labels)
        self.eval()

    def name_classes(self, labels: list[str]) -> None:
        """Set the classes of a model that compares images with texts.

        Raises:
            InputError: the model has fixed classes.
        """
        task: Any = self.task
        if hasattr(task, "name_classes"):
            task.eval().name_classes(*self.data.prepare_texts(labels))
        elif labels != self.labels:
            raise InputError(f"--labels: {type(task).__name__} has fixed classes: leave it out")
        self.labels = labels

    @property
    def net(self) -> nn.Module:
        """The network; its inputs are raw pixels (B, C, H, W), tokens (B, T) and mask (B, T), or tokens (B, T)."""
        net: nn.Module = self.pixels if self.kind == "image" else self.pixels.net
        return net

    def prepare(self, inputs: list[Any]) -> tuple[Inputs, list[str]]:
        """Tensors of a batch of images (pixels not normalised) or texts, and a note for each input."""
        if self.kind == "image":
            prepared = [self.data.prepare_image(image) for image in inputs]
            return (torch.stack([pixels for pixels, _ in prepared]),), [note for _, note in prepared]
        return self.data.prepare_texts(inputs), [""] * len(inputs)

    def probabilities(self, inputs: Inputs) -> Tensor:
        """Probabilities (B, num_classes) float32 of a prepared batch on this device."""
        if self.kind == "image":
            inputs = (self.pixels.normalise(inputs[0]),)
        targets = torch.zeros(len(inputs[0]), dtype=torch.long, device=inputs[0].device)
        task: Any = self.task
        predicted = task.predict_step((*inputs, targets), 0)
        probabilities: Tensor = predicted["probabilities"]
        return probabilities

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """Probabilities (B, num_classes) of a batch of `InputsDataModule`; None if no input can be used."""
        return None if batch["inputs"] is None else self.probabilities(batch["inputs"])


def _build_data(checkpoint: dict[str, Any], spec: Tree, arguments: Tree, given: str) -> LightningDataModule:
    """The DataModule of a run with its tokenizer and labels; the data is not loaded."""
    cls = import_class(spec.get("class_path", ""))
    if not isinstance(cls, type) or not issubclass(cls, LightningDataModule):
        raise InputError(f"--ckpt_path {given} has no DataModule: give a checkpoint written by src.train")
    known = inspect.signature(cls).parameters
    if unknown := next((name for name in arguments if name not in known), None):
        raise InputError(f"--data.{unknown}: {cls.__name__} has no such argument{nearest(unknown, known)}")
    with constructor_errors():
        data: LightningDataModule = cls(**{**spec.get("init_args", {}), **arguments})
    restore_data(checkpoint, data)
    return data
