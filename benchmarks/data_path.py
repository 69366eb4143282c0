"""Loading images: this project's DataModules and torchvision's usual pipelines, on the same images.

MNIST: both shuffle the training digits and give normalised float batches of 128 in the calling process. Image files:
both crop and flip JPEGs of 500 x 375 pixels at random and give shuffled, normalised float batches of 32, with as many
worker processes; each side has a process of its own, and its workers are started before. They alternate, A B A B ...,
after one pair that does not count. A cache is compared in its second epoch and later.

    python benchmarks/data_path.py [--data_dir FOLDER] [--pairs 9] [--quick]
"""

import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image
from sklearn.datasets import load_sample_images
from table import DATA_DIR, Row, alternate, parse, show
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST, ImageFolder

from src.engine.system.hardware import keep_freed_memory
from src.vision.image_folder import MEAN as PIXEL_MEAN
from src.vision.image_folder import STD as PIXEL_STD
from src.vision.image_folder import ImageFolderDataModule
from src.vision.mnist import MEAN, STD, MNISTDataModule

BATCH_SIZE = 128
PHOTO_BATCH = 32
CROP = 0.5  # smallest share of a photo that a random crop keeps


class PerImage(MNIST):
    """torchvision's dataset, with digits already in memory."""

    def __init__(self, data: MNISTDataModule) -> None:
        self.data, self.targets = data.train_set.images, data.train_set.targets
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        self.target_transform = None


def batches_per_second(loader: DataLoader, limit: int) -> float:
    start = time.perf_counter()
    count = 0
    while count < limit:
        for _ in loader:
            count += 1
            if count == limit:
                break
    return limit / (time.perf_counter() - start)


def digits(options: Any) -> list[Row]:
    """The row for MNIST."""
    data = MNISTDataModule(data_dir=options.data_dir, batch_size=BATCH_SIZE)
    data.prepare_data()
    data.setup("fit")
    loaders = data.train_dataloader(), DataLoader(PerImage(data), BATCH_SIZE, shuffle=True)
    limits = (100, 5) if options.quick else (1_000, 30)
    ours, theirs = alternate(
        *(partial(batches_per_second, *pair) for pair in zip(loaders, limits, strict=True)), options.pairs
    )
    return [Row("batches of MNIST", "batches/s", ours, "torchvision, per image", theirs)]


def make_photos(folder: Path, count: int) -> None:
    """Save random parts of scikit-learn's two photos, mirrored or not, with Pillow's default quality: 30 kB each."""
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    draw = random.Random(0)
    for number in range(count):
        width = draw.uniform(500, 569)
        left, top = draw.uniform(0, 640 - width), draw.uniform(0, 427 - width * 0.75)
        part = photos[number % 2].resize((500, 375), box=(left, top, left + width, top + width * 0.75))
        if draw.random() < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        file = folder / ("temple", "flower")[number % 2] / f"{number}.jpg"
        file.parent.mkdir(exist_ok=True)
        part.save(file)


@cache
def our_epoch(folder: str, size: int, workers: int, cached: bool) -> Callable[[], int]:
    """A function that loads an epoch and returns its number of images."""
    keep_freed_memory()  # as in training
    shares = {"val_share": 0.01, "test_share": 0.01}
    data = ImageFolderDataModule(
        folder, image_size=size, batch_size=PHOTO_BATCH, crop=CROP, num_workers=workers, cache=cached, **shares
    )
    data.setup("fit")
    loader = data.train_dataloader()
    return lambda: sum(len(data.on_after_batch_transfer(batch, 0)[0]) for batch in loader)


@cache
def their_epoch(folder: str, size: int, workers: int) -> Callable[[], int]:
    """The same with torchvision."""
    augment = [transforms.RandomResizedCrop(size, scale=(CROP, 1)), transforms.RandomHorizontalFlip()]
    as_input = [transforms.ToTensor(), transforms.Normalize(PIXEL_MEAN, PIXEL_STD)]
    files = ImageFolder(folder, transforms.Compose([*augment, *as_input]))
    loader = DataLoader(files, PHOTO_BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda: sum(len(images) for images, _ in loader)


def images_per_second(epoch: Callable[..., Callable[[], int]], *arguments: Any) -> float:
    load = epoch(*arguments)
    if load not in _started:
        load()  # starts workers, and fills a cache
        _started.add(load)
    start = time.perf_counter()
    count = load() + load()
    return count / (time.perf_counter() - start)


_started: set[Callable[[], int]] = set()


def photos(options: Any) -> list[Row]:
    """The rows for image files."""
    rows = []
    # Not forked: this process has computed with threads, which a fork does not have.
    first, second = (ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder, first, second:
        make_photos(Path(folder), 96 if options.quick else 256)

        def measure(process: ProcessPoolExecutor, *arguments: Any) -> float:
            return process.submit(images_per_second, *arguments).result()

        for size, target in ((64, "ratio at least 3"), (224, "ratio at least 1.5")):
            for workers in (0, 2):
                what = f"JPEGs at {size} pixels, {workers} workers"
                ours, theirs = alternate(
                    partial(measure, first, our_epoch, folder, size, workers, False),
                    partial(measure, second, their_epoch, folder, size, workers),
                    options.pairs,
                )
                rows.append(Row(what, "images/s", ours, "torchvision's ImageFolder", theirs, target))
            cached, again = (partial(measure, first, our_epoch, folder, size, 0, kept) for kept in (True, False))
            ours, theirs = alternate(cached, again, options.pairs)
            what = f"JPEGs at {size} pixels, cached, 0 workers"
            rows.append(Row(what, "images/s", ours, "without cache", theirs, "ratio at least 5"))
    return rows


def main() -> None:
    options = parse(__doc__, DATA_DIR)
    show([*digits(options), *photos(options)], options.results)


if __name__ == "__main__":
    main()
