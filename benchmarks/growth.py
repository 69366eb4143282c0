"""Time per image and per token with twenty times the data.

The same digits and the same text are taken once and twenty times over. Measured are a pass over all batches, the
preparation of the text, and training steps.

    python benchmarks/growth.py [--data_dir FOLDER] [--pairs 9] [--quick]
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from table import DATA_DIR, Row, has, in_turn, parse, show
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training import autocast

FACTOR = 20


def microseconds(loader: DataLoader, batches: int | None, net: nn.Module | None = None) -> float:
    """Time per value of the targets, over all or some batches; with a network, it is trained on them."""
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
    """The row of time with much data beside time with little."""
    ours, theirs = in_turn(large, small, pairs)
    return Row(f"growth: {what}", unit, ours, f"{FACTOR} times less data", theirs, "ratio at most 1.1")


def images(options: Any) -> list[Row]:
    """The rows of the domain of images."""
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
            lambda: mean_of_many(lambda: microseconds(small, None), options),
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
    """The rows of the domain of text."""
    from src.text.corpus import TextDataModule
    from src.text.gpt import GPT

    def prepared(path: Path, cache: str) -> TextDataModule:
        data = TextDataModule(path=str(path), cache_dir=cache, batch_size=8)
        data.prepare_data()
        data.setup("fit")
        return data

    def preparation(path: Path) -> float:
        """Time per byte of reading and tokenizing."""
        with tempfile.TemporaryDirectory() as cache:
            start = time.perf_counter()
            prepared(path, cache)
            return (time.perf_counter() - start) / path.stat().st_size * 1e6

    with tempfile.TemporaryDirectory() as folder:
        base = TextDataModule(data_dir=options.data_dir)._find_files()[0].read_bytes()
        paths = Path(folder) / "small.txt", Path(folder) / "large.txt"
        for path, factor in zip(paths, (1, FACTOR), strict=True):
            path.write_bytes(base * factor)
        reading = compare(
            "reading and tokenizing text",
            "µs/byte",
            lambda: preparation(paths[1]),
            lambda: mean_of_many(lambda: preparation(paths[0]), options),
            options.pairs,
        )
        small, large = (prepared(path, folder).train_dataloader() for path in paths)
        net = GPT()
        batches = compare(
            "all batches of tokens",
            "µs/token",
            lambda: microseconds(large, None),
            lambda: mean_of_many(lambda: microseconds(small, None), options),
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


def mean_of_many(measure: Callable[[], float], options: Any) -> float:
    """Of a pass over the small data, several times over, so that it takes about as long as one over the large."""
    many = 2 if options.quick else FACTOR
    return sum(measure() for _ in range(many)) / many


def steps(options: Any) -> int:
    """Of training."""
    return 5 if options.quick else 100


def main() -> None:
    options = parse(__doc__, DATA_DIR)
    rows = images(options) if has("vision") else []
    rows += text(options) if has("text") else []
    show(rows, options.results)


if __name__ == "__main__":
    main()
