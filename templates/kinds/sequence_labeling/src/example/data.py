"""Texts with a class for each letter: replace them with your own data."""

import random

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from src.engine.data.loading import IGNORED, Batches, batch_loader, shuffled

Batch = tuple[Tensor, Tensor, Tensor]
LETTERS = "abcdefghijklmnopqrstuvwxyz"  # token 0 is padding, and every other character


class ExampleTexts(Dataset[Batch]):
    """Random letters, some of them in runs.

    Args:
        count: number of texts.
        seed: another seed gives other texts.
    """

    def __init__(self, count: int, seed: int) -> None:
        draw = random.Random(seed)
        self.texts = ["".join(draw.choice("abcd") * draw.choice((1, 1, 2, 3)) for _ in range(8)) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitems__(self, indices: list[int]) -> Batch:
        """A batch: tokens (B, T) int64, mask (B, T) bool and targets (B, T) int64, -100 for padding."""
        texts = [self.texts[index] for index in indices]
        targets = [torch.tensor(classes(text)) for text in texts]
        return *tensors(texts), pad_sequence(targets, batch_first=True, padding_value=IGNORED)


def classes(text: str) -> list[int]:
    """0 for a single letter, 1 for the first of a run, 2 for the rest of it."""
    neighbours = zip(" " + text, text, text[1:] + " ", strict=False)
    return [2 if before == letter else int(letter == after) for before, letter, after in neighbours]


def tensors(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Tokens (B, T) int64, padded to the longest text, and mask (B, T) bool, true for tokens."""
    tokens = [torch.tensor([LETTERS.find(letter) + 1 for letter in text.lower()]) for text in texts]
    mask = pad_sequence([torch.ones_like(one).bool() for one in tokens], batch_first=True)
    return pad_sequence(tokens, batch_first=True), mask


class ExampleDataModule(LightningDataModule):
    """Texts with three classes of letters, in parts for training, validation and test.

    Args:
        batch_size: texts per batch over all processes.
        size: number of training texts; validation and test have a fifth of it each.
        num_workers: processes that build batches.
    """

    input_kind = "text"
    num_classes = 3
    vocab_size = len(LETTERS) + 1
    labels = ("single", "first", "more")

    def __init__(self, batch_size: int = 32, size: int = 1000, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.size = size
        self.num_workers = num_workers

    def network_arguments(self) -> dict[str, int]:
        """The network arguments that depend on the data."""
        return {"num_classes": self.num_classes, "vocab_size": self.vocab_size}

    def setup(self, stage: str) -> None:
        sizes = {"train": self.size, "val": self.size // 5, "test": self.size // 5}
        self.parts = {part: ExampleTexts(count, seed) for seed, (part, count) in enumerate(sizes.items())}

    def prepare(self, inputs: list[str]) -> tuple[Tensor, Tensor]:
        """Tokens and mask of texts to predict on: see `tensors`."""
        return tensors(inputs)

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test")

    def _loader(self, part: str) -> DataLoader[Batch]:
        texts = self.parts[part]
        order = shuffled(len(texts)) if part == "train" else None
        batches = Batches(len(texts), self.batch_size, self.trainer, order)
        return batch_loader(texts, batches, num_workers=self.num_workers)
