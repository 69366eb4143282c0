"""Batches a second of MNISTDataModule beside torchvision's usual per-image pipeline, on the same digits.

Both shuffle the training digits and give normalised float batches of 128 in the calling process. They run in
turn, A B A B ..., after one pair that is not counted.

    python benchmarks/data_path.py [--data_dir FOLDER] [--pairs 9]
"""

import argparse
import statistics
import time

from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST

from src.data.mnist import MEAN, STD, MNISTDataModule

BATCH_SIZE = 128


class PerImage(MNIST):
    """torchvision's dataset over digits that are already in memory."""

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
    parser = argparse.ArgumentParser(description="The data path beside torchvision's per-image pipeline.")
    parser.add_argument("--data_dir", help="folder with the official files; without them the sample is used")
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()

    data = MNISTDataModule(data_dir=options.data_dir, batch_size=BATCH_SIZE)
    data.prepare_data()
    data.setup("fit")
    ours, usual = data.train_dataloader(), DataLoader(PerImage(data), BATCH_SIZE, shuffle=True)
    pairs = []
    for pair in range(options.pairs + 1):
        speeds = (batches_per_second(ours, 1_000), batches_per_second(usual, 30))
        if pair:
            pairs.append(speeds)

    table = Table("batches/s", "median", "lowest", "highest")
    for name, values in (
        ("MNISTDataModule", [a for a, _ in pairs]),
        ("torchvision, image by image", [b for _, b in pairs]),
        ("ratio", [a / b for a, b in pairs]),
    ):
        table.add_row(name, *(f"{f(values):,.1f}" for f in (statistics.median, min, max)))
    Console().print(table)


if __name__ == "__main__":
    main()
