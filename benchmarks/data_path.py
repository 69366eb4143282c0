"""Batches per second of MNISTDataModule and of torchvision's usual per-image pipeline, on the same digits.

Both shuffle the training digits and give normalised float batches of 128 in the calling process. They alternate,
A B A B ..., after one pair that does not count.

    python benchmarks/data_path.py [--data_dir FOLDER] [--pairs 9] [--quick]
"""

import time
from functools import partial

from table import DATA_DIR, Row, alternate, parse, show
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST

from src.vision.mnist import MEAN, STD, MNISTDataModule

BATCH_SIZE = 128


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


def main() -> None:
    options = parse(__doc__, DATA_DIR)
    data = MNISTDataModule(data_dir=options.data_dir, batch_size=BATCH_SIZE)
    data.prepare_data()
    data.setup("fit")
    loaders = data.train_dataloader(), DataLoader(PerImage(data), BATCH_SIZE, shuffle=True)
    limits = (100, 5) if options.quick else (1_000, 30)
    ours, theirs = alternate(
        *(partial(batches_per_second, *pair) for pair in zip(loaders, limits, strict=True)), options.pairs
    )
    show([Row("batches of MNIST", "batches/s", ours, "torchvision, per image", theirs)], options.results)


if __name__ == "__main__":
    main()
