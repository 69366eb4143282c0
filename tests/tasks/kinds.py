"""A tiny network and made-up data for each kind of task."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from src.engine.data.loading import IGNORED, Batches, batch_loader, shuffled
from src.engine.data.pixels import normalise

HERE = __name__
SIDE = 8
MEAN, STD = 0.5, 0.25


class Rows(Dataset[Any]):
    """Rows of tensors."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return tuple(one[indices] for one in self.tensors)


class KindData(LightningDataModule):
    """Batches of what `draw` returns; each part ends with a batch that two processes cannot share evenly."""

    def __init__(self, batch_size: int = 20) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.parts = [
            Rows(*self.draw(size, torch.Generator().manual_seed(seed))) for seed, size in enumerate((105, 21, 21))
        ]

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(0, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(1)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(2)

    def _loader(self, part: int, shuffle: bool = False) -> DataLoader[Any]:
        rows = self.parts[part]
        order = shuffled(len(rows)) if shuffle else None
        return batch_loader(rows, Batches(len(rows), self.batch_size, self.trainer, order))


class NumbersData(KindData):
    """Three numbers (B, 3), and two targets (B, 2) of very different size, some of which are unknown."""

    input_kind = "table"
    columns = ("a", "b", "c")
    labels = ("large", "small")

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        x = torch.randn(count, 3, generator=generator)
        targets = torch.stack([1000 + 50 * x.sum(1), x[:, 0] - x[:, 1]], dim=1)
        targets[::7, 0] = torch.nan
        return x, targets

    def prepare(self, inputs: list[dict[str, float]]) -> Tensor:
        return torch.tensor([[row[name] for name in self.columns] for row in inputs])

    def raw(self) -> list[Any]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.parts[2].tensors[0].tolist()]


class PixelData(KindData):
    """Images (B, 1, 8, 8)."""

    input_kind = "image"
    pixel_mean, pixel_std = (MEAN,), (STD,)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        pixels = torch.randint(0, 256, (count, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        return normalise(pixels, MEAN, STD), self.targets(pixels)

    def targets(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    def prepare(self, inputs: list[Image.Image]) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(image.convert("L")) for image in inputs]))[:, None]

    def raw(self) -> list[Any]:
        pixels = ((self.parts[2].tensors[0] * STD + MEAN) * 255).round().byte()
        return [Image.fromarray(one[0].numpy()) for one in pixels]


class FactsData(PixelData):
    """Targets (B, 3) say which of the first pixels are light; some are unknown."""

    labels = ("first", "the second", "third")

    def targets(self, pixels: Tensor) -> Tensor:
        targets = (pixels.flatten(1)[:, :3] > 127).long()
        targets[::9, 1] = IGNORED
        return targets


class MasksData(PixelData):
    """Targets (B, 8, 8) say how light each pixel is; the first row is unknown."""

    labels = ("dark", "grey", "light")

    def targets(self, pixels: Tensor) -> Tensor:
        targets = pixels[:, 0].long() // 86
        targets[:, 0] = IGNORED
        return targets


class DigitsData(KindData):
    """Digits as tokens (B, T) and mask (B, T); targets (B, T) are their remainders by three."""

    input_kind = "text"
    labels = ("none", "one", "two")

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        tokens = torch.randint(1, 10, (count, 6), generator=generator)
        mask = torch.arange(6) < torch.randint(2, 7, (count, 1), generator=generator)
        mask[0] = True
        return tokens * mask, mask, torch.where(mask, tokens % 3, IGNORED)

    def prepare(self, inputs: list[str]) -> tuple[Tensor, Tensor]:
        tokens = pad_sequence([torch.tensor([int(one) for one in text]) for text in inputs], batch_first=True)
        return tokens, tokens > 0

    def raw(self) -> list[Any]:
        tokens = self.parts[2].tensors[0].tolist()
        return ["".join(str(one) for one in row if one) for row in tokens]


class NumbersNet(nn.Sequential):
    num_targets = 2

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


class FactsNet(nn.Sequential):
    num_classes = 3

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(SIDE * SIDE, 3))


class MasksNet(nn.Sequential):
    num_classes = 3

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 8, 1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1))


class DigitsNet(nn.Module):
    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(tokens))  # (B, T, 3)
        return logits


TASKS = {
    "Numbers": "Regressor",
    "Facts": "MultiLabelClassifier",
    "Masks": "SegmentationTask",
    "Digits": "SequenceLabeler",
}


def options(kind: str) -> tuple[str, ...]:
    """The options of `src.train` for a kind."""
    classes = (f"--model={TASKS[kind]}", f"--model.net={HERE}.{kind}Net", f"--data={HERE}.{kind}Data")
    return (*classes, "--checkpoint.monitor=val/loss", "--checkpoint.mode=min")
