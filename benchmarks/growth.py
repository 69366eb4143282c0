"""Time per image and per token with twenty times as much data.

The large data are twenty copies of the small data: digits and text. Measures a pass over all batches, reading and
tokenizing the text, and training steps.

    python benchmarks/growth.py [--data_dir FOLDER] [--pairs 9] [--quick]
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from table import DATA_DIR, Row, alternate, has_domain, parse, show
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training import autocast

FACTOR = 20


def microseconds(loader: DataLoader, batches: int | None, net: nn.Module | None = None) -> float:
    """Time per target over the first `batches` batches, or all; if a network is given, it is trained on them."""
    count = 0
    optimizer = torch.optim.AdamW(net.parameters(), fused=True) if net else None
    start = time.perf_counter()
    for number, (inputs, targets) in enumerate(loader):
        if number == batches:
            break
        count += targets.numel()
        if net is not None and optimizer is not None:
            with autocast():
                loss = F.cross_entropy(net(inputs).flatten(0, -2), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (time.perf_counter() - start) / count * 1e6


def compare(what: str, unit: str, large: Callable[[], float], small: Callable[[], float], pairs: int) -> Row:
    """A row with the time for the large and the small data."""
    ours, theirs = alternate(large, small, pairs)
    return Row(f"growth: {what}", unit, ours, f"{FACTOR} times less data", theirs, "ratio at most 1.1")


def images(options: Any) -> list[Row]:
    """The rows for images."""
    from src.vision.cnn import CNN
    from src.vision.mnist import ImageTensors, MNISTDataModule

    digits = MNISTDataModule(data_dir=options.data_dir)
    digits.prepare_data()
    digits.setup("fit")
    small = digits.train_dataloader()
    digits.train_set = ImageTensors(
        digits.train_set.images.repeat(FACTOR, 1, 1), digits.train_set.targets.repeat(FACTOR)
    )
    large = digits.train_dataloader()
    net = CNN().to(memory_format=torch.channels_last)
    return [
        compare(
            "all batches of images",
            "µs/image",
            lambda: microseconds(large, None),
            lambda: repeated(lambda: microseconds(small, None), options),
            options.pairs,
        ),
        compare(
            "training on images",
            "µs/image",
            lambda: microseconds(large, steps(options), net),
            lambda: microseconds(small, steps(options), net),
            options.pairs,
        ),
    ]


def text(options: Any) -> list[Row]:
    """The rows for text."""
    from src.text.corpus import TextDataModule
    from src.text.gpt import GPT

    def prepared(path: Path, cache: str) -> TextDataModule:
        data = TextDataModule(path=str(path), cache_dir=cache, batch_size=8)
        data.prepare_data()
        data.setup("fit")
        return data

    def tokenization(path: Path) -> float:
        """Time per byte for reading and tokenizing."""
        with tempfile.TemporaryDirectory() as cache:
            start = time.perf_counter()
            prepared(path, cache)
            return (time.perf_counter() - start) / path.stat().st_size * 1e6

    with tempfile.TemporaryDirectory() as folder:
        base = TextDataModule(data_dir=options.data_dir)._find_files()[0][0].read_bytes()
        paths = Path(folder) / "small.txt", Path(folder) / "large.txt"
        for path, factor in zip(paths, (1, FACTOR), strict=True):
            path.write_bytes(base * factor)
        reading = compare(
            "reading and tokenizing text",
            "µs/byte",
            lambda: tokenization(paths[1]),
            lambda: repeated(lambda: tokenization(paths[0]), options),
            options.pairs,
        )
        small, large = (prepared(path, folder).train_dataloader() for path in paths)
        net = GPT()
        batches = compare(
            "all batches of tokens",
            "µs/token",
            lambda: microseconds(large, None),
            lambda: repeated(lambda: microseconds(small, None), options),
            options.pairs,
        )
        training = compare(
            "training on tokens",
            "µs/token",
            lambda: microseconds(large, steps(options), net),
            lambda: microseconds(small, steps(options), net),
            options.pairs,
        )
    return [reading, batches, training]


def repeated(measure: Callable[[], float], options: Any) -> float:
    """Mean of several passes over the small data, which take about as long as one over the large data."""
    count = 2 if options.quick else FACTOR
    return sum(measure() for _ in range(count)) / count


def steps(options: Any) -> int:
    """Number of training steps."""
    return 5 if options.quick else 100


def main() -> None:
    options = parse(__doc__, DATA_DIR)
    rows = images(options) if has_domain("vision") else []
    rows += text(options) if has_domain("text") else []
    show(rows, options.results)


if __name__ == "__main__":
    main()
