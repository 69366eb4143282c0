"""A checkpoint made ready for inputs of the user's own, for the commands that predict, export and serve."""

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
    run_configuration,
)
from src.engine.runs.runs import find_checkpoint
from src.engine.runs.trust import Trust, classes_in
from src.engine.system.classes import Tree, import_class, nearest
from src.engine.system.errors import InputError, constructor_errors

Inputs = tuple[Tensor, ...]


class Inference(LightningModule):
    """The task of a checkpoint behind what its data does to an input.

    Args:
        given: path of a checkpoint, or `best` or `last` of the newest run in `logs/`.
        ability: name of a method that the task must have.
        data: arguments of the DataModule in place of the run's own.
        trust: modules outside of this project whose classes may be built.

    `kind` is `image` or `text`, the inputs of a classifier, or `prompt`, those of a language model. `labels` are the
    names of a classifier's classes.

    Raises:
        InputError: there is no such checkpoint, it cannot be loaded, or its data cannot take inputs one at a time.
    """

    def __init__(
        self, given: str, ability: str = "predict_step", data: Tree | None = None, trust: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.path = find_checkpoint(given)
        self.checkpoint = read_checkpoint(str(self.path))
        own = own_configuration(self.checkpoint, self.path.parent.parent if given in ("best", "last") else None)
        vouched = Trust(tuple(trust), frozenset(classes_in(own)), paths=bool(own))
        task: Any = load_model(self.checkpoint, ability, str(self.path), vouched)
        self.task = task
        self.spec = model_arguments(self.checkpoint, vouched)
        with checkpoint_errors(str(self.path)):
            saved = own or run_configuration(self.checkpoint, vouched)
            self.data: Any = _data_of(self.checkpoint, saved.get("data") or {}, data or {}, given)
        if hasattr(task, "generate"):
            self.kind = "prompt"
        elif hasattr(self.data, "prepare_image"):
            self.kind = "image"
        elif hasattr(self.data, "prepare_texts"):
            self.kind = "text"
        else:
            raise InputError(
                f"{type(self.data).__name__} takes no inputs one at a time: give it a method prepare_image or"
                " prepare_texts, as in MNISTDataModule and LabelledTextDataModule"
            )
        self.labels = [str(label) for label in getattr(self.data, "labels", ())]
        mean, std = getattr(self.data, "pixel_mean", (0.0,)), getattr(self.data, "pixel_std", (1.0,))
        self.pixels = Pixels(task.net, mean, std)
        if self.labels:
            self.name_classes(self.labels)
        self.eval()

    def name_classes(self, labels: list[str]) -> None:
        """Choose the classes that a model of images and texts tells apart; any other has those it was trained on.

        Raises:
            InputError: it has.
        """
        task: Any = self.task
        if hasattr(task, "name_classes"):
            task.eval().name_classes(*self.data.prepare_texts(labels))
        elif labels != self.labels:
            raise InputError(f"--labels: {type(task).__name__} tells the classes it was trained on: leave it out")
        self.labels = labels

    @property
    def net(self) -> nn.Module:
        """The network with all that is done to tensors: (B, C, H, W) pixels, tokens (B, T) and mask, or tokens."""
        net: nn.Module = self.pixels if self.kind == "image" else self.pixels.net
        return net

    def prepare(self, inputs: list[Any]) -> tuple[Inputs, list[str]]:
        """A batch of images or texts as the network takes them but for the pixels' scale, and a note for each."""
        if self.kind == "image":
            found = [self.data.prepare_image(image) for image in inputs]
            return (torch.stack([pixels for pixels, _ in found]),), [note for _, note in found]
        return self.data.prepare_texts(inputs), [""] * len(inputs)

    def probabilities(self, inputs: Inputs) -> Tensor:
        """(B, num_classes) float32 of a batch that is prepared and on this device."""
        if self.kind == "image":
            inputs = (self.pixels.normalise(inputs[0]),)
        targets = torch.zeros(len(inputs[0]), dtype=torch.long, device=inputs[0].device)
        task: Any = self.task
        predicted = task.predict_step((*inputs, targets), 0)
        probabilities: Tensor = predicted["probabilities"]
        return probabilities

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """Probabilities (B, num_classes) of a batch of `InputsDataModule`; None where no input can be used."""
        return None if batch["inputs"] is None else self.probabilities(batch["inputs"])


def _data_of(checkpoint: dict[str, Any], spec: Tree, arguments: Tree, given: str) -> LightningDataModule:
    """The DataModule of a run, with its tokenizer and labels, but without its data."""
    cls = import_class(spec.get("class_path", ""))
    if not isinstance(cls, type) or not issubclass(cls, LightningDataModule):
        raise InputError(f"--ckpt_path {given} does not say what its data is: give one that src.train wrote")
    known = inspect.signature(cls).parameters
    if unknown := next((name for name in arguments if name not in known), None):
        raise InputError(f"--data.{unknown}: {cls.__name__} has no such argument{nearest(unknown, known)}")
    with constructor_errors():
        data: LightningDataModule = cls(**{**spec.get("init_args", {}), **arguments})
    if state := checkpoint.get(cls.__qualname__):
        data.load_state_dict(state)
    return data
