"""Small images of circles, squares and crosses, any of them: replace them with your own data."""

import shlex
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from src.engine.data.batched import BatchedDataModule
from src.engine.data.pixels import normalise, pixel_statistics
from src.engine.system.errors import InputError

Sample = tuple[Tensor, Tensor]
SIDE = 24  # height and width of an image in pixels


class ExampleImages(Dataset[Sample]):
    """Drawings with noise; each shape is in half of the images.

    Args:
        count: number of images.
        seed: another seed gives other images.
        augments: mirror half of the images, at random.
    """

    def __init__(self, count: int, seed: int, augments: bool = False) -> None:
        self.augments = augments
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
        shades = 150 * drawn.any(dim=1) + noise  # (count, SIDE, SIDE)
        self.images = [Image.fromarray(one.to(torch.uint8).numpy()) for one in shades]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        """An image (1, SIDE, SIDE) float, normalised, and targets (3,) of 0 and 1."""
        image = normalise(pixels([self.images[index]])[0], *pixel_statistics(ExampleDataModule))
        if self.augments and torch.rand(()) < 0.5:
            image = image.flip(-1)
        return image, self.targets[index]


def pixels(images: list[Image.Image]) -> Tensor:
    """The pixels of images of any size, (B, 1, SIDE, SIDE) uint8: in training and in prediction."""
    grey = [np.array(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image in images]
    return torch.from_numpy(np.stack(grey)).unsqueeze(1)


class ExampleDataModule(BatchedDataModule):
    """Images with three labels, in parts for training, validation and test.

    Args:
        batch_size: images per batch over all processes.
        size: number of training images; validation and test have a fifth of it each.
        num_workers: processes that build batches.
    """

    input_kind = "image"
    labels = ("circle", "square", "cross")
    num_classes = len(labels)
    pixel_mean, pixel_std = (0.25,), (0.25,)  # of each channel, on a scale of 0 to 1

    def __init__(self, batch_size: int = 32, size: int = 2000, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.size = size
        self.num_workers = num_workers

    def network_arguments(self) -> dict[str, int]:
        """The network arguments that depend on the data; called before `setup`."""
        return {"num_classes": self.num_classes}

    def setup(self, stage: str) -> None:
        self.train_set = ExampleImages(self.size, seed=0, augments=True)
        self.val_set, self.test_set = (ExampleImages(self.size // 5, seed) for seed in (1, 2))

    def prepare(self, inputs: list[Image.Image]) -> Tensor:
        """The pixels of images to predict on, not normalised: see `pixels`."""
        return pixels(inputs)

    def prepare_targets(self, values: list[Any]) -> Tensor:
        """Targets (B, 3) of a column with true labels, such as `circle cross`, or empty; a label with blanks is quoted.

        Raises:
            InputError: a label is unknown, or its quotes are not closed.
        """
        try:
            found = [shlex.split("" if value is None else str(value)) for value in values]
        except ValueError as error:
            raise InputError(f"true labels cannot be read ({error}): put a label with ' into double quotes") from error
        if unknown := next((label for own in found for label in own if label not in self.labels), None):
            raise InputError(f"true label {unknown!r} is none of {', '.join(self.labels)}: separate labels by spaces")
        return torch.tensor([[int(label in own) for label in self.labels] for own in found])
