"""Tiny networks and data, so that tests of the engine need no domain."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from src import ROOT
from src.engine.data.batched import BatchDataset, BatchedDataModule
from src.engine.data.loading import Batches, batch_loader, shuffled
from src.engine.system.errors import InputError

RECIPE = str(ROOT / "tests" / "toy.yaml")
SIDE, CLASSES = 8, 3
MEAN, STD = 0.4, 0.3
Batch = tuple[Tensor, Tensor]


class ToyNet(nn.Module):
    """A convolution, batch norm and a linear layer.

    Shapes:
        (B, 1, 8, 8) float -> (B, num_classes) float.
    """

    def __init__(
        self, image_size: int = SIDE, num_classes: int = CLASSES, width: int = 8, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width {width} is too small for ToyNet: give at least 1")
        self.image_size = image_size
        self.num_classes = num_classes
        self.width = width
        self.dropout = dropout
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width * (image_size // 2) ** 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (1, self.image_size, self.image_size):
            raise ValueError(f"images of shape {tuple(x.shape)} do not fit ToyNet")
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)  # (B, width, S/2, S/2)
        logits: Tensor = self.head(F.dropout(x.flatten(1), self.dropout, self.training))  # (B, num_classes)
        return logits


class ToyMLP(nn.Module):
    """One hidden layer.

    Shapes:
        (B, ...) float with in_features values -> (B, num_classes) float.
    """

    def __init__(self, in_features: int = SIDE * SIDE, num_classes: int = CLASSES, hidden: int = 16) -> None:
        super().__init__()
        self.in_features = in_features
        self.num_classes = num_classes
        self.hidden = hidden
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class ToyImages(BatchDataset):
    """Noisy 8x8 images of a bar on the left, in the middle or on the right; indexed by batch."""

    def __init__(self, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.targets = torch.arange(size) % CLASSES
        self.pixels = torch.randint(0, 90, (size, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        for label in range(CLASSES):
            self.pixels[self.targets == label, :, :, 3 * label : 3 * label + 2] += 150

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, indices: list[int]) -> Batch:
        return (self.pixels[indices].float() / 255 - MEAN) / STD, self.targets[indices]


class ToyData(BatchedDataModule):
    """Training, validation and test splits of `ToyImages`.

    Args:
        batch_size: images per batch, at least 1.
        size: number of training images; validation and test have a fifth of it each.
        num_workers: loader processes.
    """

    input_kind = "image"
    drawn = True
    num_classes = CLASSES
    labels = ("left", "middle", "right")
    pixel_mean, pixel_std = (MEAN,), (STD,)

    def __init__(self, batch_size: int = 32, size: int = 300, num_workers: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size} is too small: give at least 1")
        self.batch_size = batch_size
        self.size = size
        self.num_workers = num_workers
        self.data_source = "toy"

    def setup(self, stage: str) -> None:
        sizes = (self.size, self.size // 5, self.size // 5)
        self.train_set, self.val_set, self.test_set = (ToyImages(size, seed) for seed, size in enumerate(sizes))

    def prepare(self, inputs: list[Image.Image]) -> Tensor:
        """Pixels (B, 1, 8, 8) uint8, not normalised."""
        pixels = [np.array(image.convert("L").resize((SIDE, SIDE))) for image in inputs]
        return torch.from_numpy(np.stack(pixels)).unsqueeze(1)

    def _loader(self, dataset: ToyImages, shuffle: bool = False) -> DataLoader[Batch]:
        order = shuffled(len(dataset)) if shuffle else None
        return batch_loader(
            dataset, Batches(len(dataset), self.batch_size, self.trainer, order), num_workers=self.num_workers
        )
