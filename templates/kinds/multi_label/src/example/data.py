"""Small images of circles, squares and crosses, any of them: replace them with your own data."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.engine.data.loading import Batches, batch_loader, shuffled
from src.engine.data.pixels import normalise
from src.engine.system.errors import InputError

Batch = tuple[Tensor, Tensor]
SIDE = 24  # height and width of an image in pixels
MEAN, STD = 0.2, 0.25  # of all pixels, on a scale of 0 to 1


class ExampleImages(Dataset[Batch]):
    """Drawings with noise; each shape is in half of the images.

    Args:
        count: number of images.
        seed: another seed gives other images.
    """

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.targets = torch.randint(0, 2, (count, 3), generator=generator)
        x, y = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="xy")
        places = torch.randint(4, SIDE - 4, (2, count, 3, 1, 1), generator=generator)
        x, y = (x - places[0]).abs(), (y - places[1]).abs()  # (count, 3, SIDE, SIDE)
        inside = torch.maximum(x, y) <= 3
        circle, square = x**2 + y**2 <= 10, inside & (torch.maximum(x, y) >= 2)
        drawn = torch.stack([circle[:, 0], square[:, 1], (inside & (torch.minimum(x, y) == 0))[:, 2]], dim=1)
        drawn &= self.targets[:, :, None, None] == 1
        noise = torch.randint(0, 60, (count, SIDE, SIDE), generator=generator)
        self.pixels = (150 * drawn.any(dim=1) + noise).to(torch.uint8).unsqueeze(1)  # (count, 1, SIDE, SIDE)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, indices: list[int]) -> Batch:
        """A batch: images (B, 1, SIDE, SIDE) float, normalised, and targets (B, 3) of 0 and 1."""
        return normalise(self.pixels[indices], MEAN, STD), self.targets[indices]


class ExampleDataModule(LightningDataModule):
    """Images with three labels, in parts for training, validation and test.

    Args:
        batch_size: images per batch over all processes.
        size: number of training images; validation and test have a fifth of it each.
        num_workers: processes that build batches.
    """

    input_kind = "image"
    num_classes = 3
    labels = ("circle", "square", "cross")
    pixel_mean, pixel_std = (MEAN,), (STD,)

    def __init__(self, batch_size: int = 32, size: int = 2000, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.size = size
        self.num_workers = num_workers

    def network_arguments(self) -> dict[str, int]:
        """The network arguments that depend on the data."""
        return {"num_classes": self.num_classes}

    def setup(self, stage: str) -> None:
        sizes = {"train": self.size, "val": self.size // 5, "test": self.size // 5}
        self.parts = {part: ExampleImages(count, seed) for seed, (part, count) in enumerate(sizes.items())}

    def prepare(self, inputs: list[Image.Image]) -> Tensor:
        """The pixels of images to predict on, not normalised, (B, 1, SIDE, SIDE) uint8."""
        grey = [np.array(image.convert("L").resize((SIDE, SIDE))) for image in inputs]
        return torch.from_numpy(np.stack(grey)).unsqueeze(1)

    def prepare_targets(self, values: list[Any]) -> Tensor:
        """Targets (B, 3) of a column with true labels, such as `circle cross`, or empty.

        Raises:
            InputError: a label is unknown.
        """
        found = [("" if value is None else str(value)).split() for value in values]
        if unknown := next((label for own in found for label in own if label not in self.labels), None):
            raise InputError(f"true label {unknown!r} is none of {', '.join(self.labels)}: separate labels by spaces")
        return torch.tensor([[int(label in own) for label in self.labels] for own in found])

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test")

    def _loader(self, part: str) -> DataLoader[Batch]:
        images = self.parts[part]
        order = shuffled(len(images)) if part == "train" else None
        batches = Batches(len(images), self.batch_size, self.trainer, order)
        return batch_loader(images, batches, num_workers=self.num_workers)
