"""Tiny texts, a language model and a matcher of images and texts, so that the tests of all three need no domain."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric, MetricCollection

from src.engine.data.loading import Batches, batch_loader
from src.engine.system.errors import SampleError
from src.engine.training.hyperparameters import describe_arguments
from src.tasks.classifier import Classifier
from src.tasks.task import Task
from tests.toy import MEAN, SIDE, STD, ToyData, ToyImages

LETTERS = " abcdefghijklmnopqrstuvwxyz"
NUMBERS = np.array([max(LETTERS.find(chr(code)), 0) for code in range(128)], dtype=np.uint8)
HELD = "TOY_WRITER_IS_HELD"  # environment: while this file is there, a writer stops behind its first letter


class ToyTokenizer:
    """A letter is a token; all that is no small letter is a blank."""

    json = json.dumps({letter: number for number, letter in enumerate(LETTERS)})

    def example(self, file: str, special: bool, max_length: int | None) -> tuple[str, str]:
        return "import json", f'[json.load(open("{file}")).get(one, 0) for one in sys.argv[1]]'

    def encode(self, text: str) -> Any:
        text.encode("utf-8")  # raises where it cannot be
        return NUMBERS[np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)]

    def stream(self, ids: Iterator[int], before: list[int]) -> Iterator[str]:
        return (LETTERS[number] for number in ids)


class ToyTextNet(nn.Module):
    """The mean of the letters' vectors, and a linear layer.

    Shapes:
        tokens (B, T) int64, mask (B, T) bool -> (B, num_classes) float.
    """

    def __init__(self, width: int = 8, num_classes: int = 2) -> None:
        super().__init__()
        self.width = width
        self.num_classes = num_classes
        self.embedding = nn.Embedding(len(LETTERS), width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        total = (self.embedding(tokens) * mask[..., None]).sum(1)  # (B, width)
        logits: Tensor = self.head(total / mask.sum(1, keepdim=True))  # (B, num_classes)
        return logits

    def write_huggingface(
        self, path: Path, labels: list[str], tokenizer: Any, max_length: Any
    ) -> tuple[nn.Module, list[str]]:
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"labels": labels}))
        return self, ["#"] * 4 + ['print("a program of five lines")']


class ToyRecurrent(nn.Module):
    """A recurrent network.

    Shapes:
        tokens (B, T) int64, mask (B, T) bool -> (B, num_classes) float.
    """

    def __init__(self, cell: str = "GRU", width: int = 8, num_classes: int = 2) -> None:
        super().__init__()
        self.cell = cell
        self.width = width
        self.num_classes = num_classes
        self.embedding = nn.Embedding(len(LETTERS), width)
        self.memory = getattr(nn, cell)(width, width, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        states, _ = self.memory(self.embedding(tokens))  # (B, T, width)
        logits: Tensor = self.head((states * mask[..., None]).sum(1))  # (B, num_classes)
        return logits


class ToyRows(Dataset[tuple[Tensor, ...]]):
    """Rows of tensors; a batch is one indexing."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return tuple(one[indices] for one in self.tensors)


class ToyTexts(LightningDataModule):
    """Praise and blame; tokenizer and labels are known after `setup`, or from a checkpoint."""

    input_kind = "text"
    text_column = "words"

    def __init__(self, size: int = 256, batch_size: int = 32) -> None:
        super().__init__()
        self.size = size
        self.batch_size = batch_size
        self.data_source = "toy"
        self.labels: list[str] = []

    def setup(self, stage: str) -> None:
        self.load_state_dict({"labels": ["good", "bad"]})
        kinds = ("a fine and good film", "an awful and bad film")
        texts = [kinds[number % 2][number % 3 :] for number in range(self.size)]
        self.rows = ToyRows(*self.prepare(texts), torch.arange(self.size) % 2)

    def state_dict(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.labels, self.tokenizer = list(state_dict["labels"]), ToyTokenizer()

    def prepare(self, inputs: list[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, T) int64, padded to the longest, and mask (B, T) bool."""
        ids = [torch.from_numpy(self.tokenizer.encode(text).astype("int64")) for text in inputs]
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(one).bool() for one in ids], batch_first=True)
        return nn.utils.rnn.pad_sequence(ids, batch_first=True), mask

    def train_dataloader(self) -> DataLoader[Any]:
        return batch_loader(self.rows, Batches(self.size, self.batch_size, self.trainer))

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class ToyLetters(ToyTexts):
    """The alphabet, over and over: a letter and the one that comes next."""

    def setup(self, stage: str) -> None:
        self.load_state_dict({"labels": []})
        letters = (torch.arange(self.size)[:, None] + torch.arange(9)) % len(LETTERS)  # (size, T + 1)
        self.rows = ToyRows(letters[:, :-1], letters[:, 1:])


class ToyLanguageNet(nn.Module):
    """The next letter, from the last one alone.

    Shapes:
        (B, T) int64 -> (B, T, letters) float.
    """

    block_size = 16

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(len(LETTERS), len(LETTERS))

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.table(tokens)
        return logits


def _check_sampling(max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if temperature < 0:
        raise ValueError(f"temperature {temperature} is out of range")


class ToyWriter(Task):
    """Learns and writes letters."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, MetricCollection({"loss": MeanMetric()}))
        self.save_hyperparameters(describe_arguments(type(self), net=net))

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        letters, targets = batch
        loss = F.cross_entropy(self(letters).flatten(0, 1), targets.flatten())
        return loss, {"value": loss.detach(), "weight": targets.numel()}

    check_sampling = staticmethod(_check_sampling)

    def generate(
        self,
        prompt: Tensor,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        generator: torch.Generator,
    ) -> Iterator[int]:
        self.check_sampling(max_new_tokens, temperature, top_k, top_p)
        return self._letters(int(prompt[-1]), max_new_tokens, temperature, generator)

    def _letters(self, letter: int, count: int, temperature: float, generator: torch.Generator) -> Iterator[int]:
        for _ in range(count):
            with torch.no_grad():
                logits = self.net(torch.tensor([[letter]]))[0, 0].float()  # (letters,)
            chances = (logits / max(temperature, 1e-3)).softmax(0)
            letter = int(torch.multinomial(chances, 1, generator=generator))
            yield letter
            while HELD in os.environ and Path(os.environ[HELD]).exists():
                time.sleep(0.01)


class NotingData(ToyData):
    """As `ToyData`, but says where it has scaled an image."""

    def notes(self, inputs: list[Image.Image]) -> list[str]:
        return ["" if image.size == (SIDE, SIDE) else "scaled" for image in inputs]


class LateData(ToyData):
    """As `ToyData`, but normalises on the device, and in a test only."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        assert self.trainer is not None
        images, targets = batch
        return (images * 255, targets) if self.trainer.training else ((images - MEAN) / STD, targets)

    def _loader(self, dataset: ToyImages, shuffle: bool = False) -> DataLoader[Any]:
        rows = ToyRows(dataset.pixels / 255, dataset.targets)
        return batch_loader(rows, Batches(len(rows), self.batch_size, self.trainer))


class Normalise(nn.Module):
    """Pixels -> what the toy network takes."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels / 255 - MEAN) / STD


class FileData(ToyData):
    """As `ToyData`, but an image is a text file of 64 numbers, which are normalised on the device."""

    input_kind = "file"
    file_suffixes = (".numbers",)
    file_example = (
        "text = open(sys.argv[1]).read()",
        "values = np.array(text.split(), np.float32).reshape(1, 1, 8, 8)",
    )
    features = Normalise()
    page_script = Path(__file__).with_name("added.js")

    @staticmethod
    def read_file(source: Any) -> list[float]:
        text = source.read_bytes() if isinstance(source, Path) else source.read()
        numbers = [float(one) for one in text.split()]
        if len(numbers) != SIDE * SIDE:
            raise SampleError(f"it has {len(numbers)} numbers, not {SIDE * SIDE}")
        return numbers

    def prepare(self, inputs: Any) -> Tensor:
        return torch.tensor(inputs).view(-1, 1, SIDE, SIDE)

    def notes(self, inputs: Any) -> list[str]:
        return [f"{len(one)} numbers" for one in inputs]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.features(batch[0]), batch[1]

    def _loader(self, dataset: ToyImages, shuffle: bool = False) -> DataLoader[Any]:
        rows = ToyRows(dataset.pixels.float(), dataset.targets)
        return batch_loader(rows, Batches(len(rows), self.batch_size, self.trainer))


class NamedData(ToyData):
    """As `ToyData`, with texts."""

    def prepare_texts(self, texts: list[str]) -> tuple[Tensor]:
        """The place of each text's first letter among l, m and r, (B,) int64."""
        return (torch.tensor(["lmr".index(text[0]) for text in texts]),)


class UnnamedData(NamedData):
    """As `NamedData`, without classes."""

    labels: tuple[str, ...] = ()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


class ToyMatcher(Classifier):
    """Tells images apart by texts that are given later."""

    named: Tensor

    def name_classes(self, texts: Tensor) -> None:
        self.named = texts

    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(*inputs)[:, self.named]
