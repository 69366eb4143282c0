"""Texts with a class for each letter: replace them with your own data."""

import random

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from src.engine.data.batched import BatchedDataModule
from src.engine.data.loading import IGNORED

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
    tokens = [torch.tensor([LETTERS.find(letter.lower()) + 1 for letter in text]) for text in texts]
    mask = pad_sequence([torch.ones_like(one).bool() for one in tokens], batch_first=True)
    return pad_sequence(tokens, batch_first=True), mask


class ExampleDataModule(BatchedDataModule):
    """Texts with three classes of letters, in parts for training, validation and test.

    Args:
        batch_size: texts per batch over all processes.
        size: number of training texts; validation and test have a fifth of it each.
        num_workers: processes that build batches.
    """

    input_kind = "text"
    vocab_size = len(LETTERS) + 1
    labels = ("single", "first", "more")
    num_classes = len(labels)

    def __init__(self, batch_size: int = 32, size: int = 1000, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.size = size
        self.num_workers = num_workers

    def network_arguments(self) -> dict[str, int]:
        """The network arguments that depend on the data; called before `setup`."""
        return {"num_classes": self.num_classes, "vocab_size": self.vocab_size}

    def setup(self, stage: str) -> None:
        sizes = (self.size, self.size // 5, self.size // 5)
        self.train_set, self.val_set, self.test_set = (ExampleTexts(count, seed) for seed, count in enumerate(sizes))

    def prepare(self, inputs: list[str]) -> tuple[Tensor, Tensor]:
        """Tokens and mask of texts to predict on: see `tensors`."""
        return tensors(inputs)
