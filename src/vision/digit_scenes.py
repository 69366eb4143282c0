"""Scenes of several MNIST digits at random places and in random sizes, with their boxes."""

import random
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.engine.data.batched import BatchDataset
from src.engine.data.pixels import normalise, pixel_statistics
from src.engine.system.errors import check_least
from src.engine.system.randomness import derive_seed
from src.vision.image_boxes import box_targets
from src.vision.image_folder import MEAN, STD, Batch
from src.vision.mnist import ImageTensors, MNISTDataModule, light_ink

MIN_SCALE, MAX_SCALE = 0.7, 2.0  # of a digit, which in MNIST is 20 pixels high or wide
MARGIN = 1  # pixels of a box around the ink
TRIES = 10  # to find a free place for a digit


class DigitScenes(BatchDataset):
    """Scenes drawn on access.

    Args:
        digits: images (N, 28, 28) uint8, light ink on a dark ground, and class numbers (N,) int64.
        count: number of scenes.
        size: S, height and width of a scene in pixels.
        max_digits: T, largest number of digits in a scene; there is at least one.
        seed: another seed gives other scenes.
    """

    def __init__(self, digits: ImageTensors, count: int, size: int, max_digits: int, seed: int) -> None:
        self.digits, self.targets = digits.images.numpy(), digits.targets
        self.count = count
        self.size = size
        self.max_digits = max_digits
        self.seed = seed
        self.statistics = pixel_statistics(DigitScenesDataModule)

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: list[int]) -> Batch:
        """Images (B, 3, S, S) float and targets (B, T, 5); in training, different ones in each epoch."""
        epoch_seed = getattr(indices, "epoch_seed", 0)  # 0: not in training
        scenes = [self.draw(derive_seed(self.seed, epoch_seed, index)) for index in indices]
        pixels = torch.from_numpy(np.stack([scene for scene, _ in scenes]))[:, None].expand(-1, 3, -1, -1)
        return normalise(pixels, *self.statistics), torch.stack([targets for _, targets in scenes])

    def draw(self, seed: int) -> tuple[Any, Tensor]:
        """A scene (S, S) uint8 and its targets (T, 5)."""
        chance = random.Random(seed)
        canvas = np.zeros((self.size, self.size), dtype=np.uint8)
        boxes: list[tuple[int, int, int, int]] = []
        classes = []
        for _ in range(chance.randint(1, self.max_digits)):
            number = chance.randrange(len(self.digits))
            ink = self._scaled(self.digits[number], chance.uniform(MIN_SCALE, MAX_SCALE))
            height, width = ink.shape[0] + 2 * MARGIN, ink.shape[1] + 2 * MARGIN
            for _ in range(TRIES):
                x1, y1 = chance.randint(0, self.size - width), chance.randint(0, self.size - height)
                x2, y2 = x1 + width, y1 + height
                if all(x2 <= a or c <= x1 or y2 <= b or d <= y1 for a, b, c, d in boxes):
                    canvas[y1 + MARGIN : y2 - MARGIN, x1 + MARGIN : x2 - MARGIN] = ink
                    boxes.append((x1, y1, x2, y2))
                    classes.append(int(self.targets[number]))
                    break
        return canvas, box_targets(torch.tensor(boxes) / self.size, torch.tensor(classes), self.max_digits)

    def _scaled(self, digit: Any, scale: float) -> Any:
        """A digit (28, 28) without its margins, in another size."""
        ink = Image.fromarray(digit)
        ink = ink.crop(ink.getbbox())
        width, height = (max(1, round(side * scale)) for side in ink.size)
        return np.asarray(ink.resize((width, height), Image.Resampling.BILINEAR))


class DigitScenesDataModule(MNISTDataModule):
    """Scenes of one to `max_digits` MNIST digits, light on black; digits of MNIST's test part are in test scenes only.

    A scene depends only on seed and index; in training also on the epoch, so that no scene occurs twice.

    Args:
        data_dir: see `MNISTDataModule`.
        source: see `MNISTDataModule`.
        scenes: training scenes per epoch, at least 1.
        eval_scenes: scenes for validation, and for testing, at least 1.
        image_size: S, height and width of a scene in pixels, a multiple of 32, at least 64.
        max_digits: T, largest number of digits in a scene, at least 1.
        batch_size: scenes per batch over all processes, at least 1.
        num_workers: processes that draw scenes; 0: the training process draws them.
        fold: see `MNISTDataModule`.
        folds: see `MNISTDataModule`.

    Batches are images (B, 3, S, S) float32, normalised like ImageNet, and targets (B, T, 5) float32: x1, y1, x2 and y2
    as shares of width and height, and the digit; -1 in rows after the last box.

    Raises:
        InputError: an argument is out of range, or there are no digits.
    """

    example_needs = "light ink on a dark background"
    drawn = False
    pixel_mean, pixel_std = MEAN, STD

    def __init__(
        self,
        data_dir: str | None = None,
        source: Literal["auto", "official", "sample"] = "auto",
        scenes: int = 8000,
        eval_scenes: int = 1000,
        image_size: int = 128,
        max_digits: int = 6,
        batch_size: int = 32,
        num_workers: int = 0,
        fold: int | None = None,
        folds: int = 5,
    ) -> None:
        super().__init__(data_dir, source, batch_size, num_workers=num_workers, fold=fold, folds=folds)
        check_least(1, scenes=scenes, eval_scenes=eval_scenes, max_digits=max_digits)
        check_least(64, image_size=image_size)
        self.save_hyperparameters()
        self.scenes = scenes
        self.eval_scenes = eval_scenes
        self.image_size = image_size
        self.max_digits = max_digits

    def setup(self, stage: str) -> None:
        """Load the digits, in every process."""
        if hasattr(self, "train_set"):
            return
        super().setup(stage)
        digits = (self.train_set, self.val_set, self.test_set)
        counts = (self.scenes, self.eval_scenes, self.eval_scenes)
        self.train_set, self.val_set, self.test_set = (
            DigitScenes(part, count, self.image_size, self.max_digits, seed)
            for seed, (part, count) in enumerate(zip(digits, counts, strict=True))
        )

    def network_arguments(self) -> dict[str, Any]:
        """The network arguments that depend on the data."""
        return {"num_classes": self.num_classes, "image_size": self.image_size}

    def prepare(self, inputs: Sequence[Image.Image]) -> Tensor:
        """Pixels (B, 3, S, S) uint8 of pictures of digits, scaled; dark ink on a light ground is inverted."""
        size = (self.image_size, self.image_size)
        greys = [Image.fromarray(light_ink(image)[0]).resize(size, Image.Resampling.BILINEAR) for image in inputs]
        return torch.from_numpy(np.stack([np.asarray(grey) for grey in greys]))[:, None].repeat(1, 3, 1, 1)
