"""Time per image and per token with twenty times the data.

The same digits and the same text are taken once and twenty times over. Measured are a pass over all batches, the
preparation of the text, and training steps.

    python benchmarks/growth.py [--data_dir FOLDER] [--pairs 9] [--quick]
"""

import tempfile
import time
from pathlib import Path

import torch
from overhead import autocast
from table import DATA_DIR, Row, in_turn, parse, show
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from src.text.corpus import TextDataModule
from src.text.gpt import GPT
from src.vision.cnn import CNN
from src.vision.mnist import ImageTensors, MNISTDataModule

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


def text(path: Path, cache: str) -> TextDataModule:
    data = TextDataModule(path=str(path), cache_dir=cache, batch_size=8)
    data.prepare_data()
    data.setup("fit")
    return data


def preparation(path: Path) -> float:
    """Time per byte of reading and tokenizing."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        text(path, cache)
        return (time.perf_counter() - start) / path.stat().st_size * 1e6


def main() -> None:
    options = parse(__doc__, DATA_DIR)
    digits = MNISTDataModule(data_dir=options.data_dir)
    digits.prepare_data()
    digits.setup("fit")
    small = digits.train_dataloader()
    digits.train_set = ImageTensors(
        digits.train_set.images.repeat(FACTOR, 1, 1), digits.train_set.targets.repeat(FACTOR)
    )
    large = digits.train_dataloader()
    steps = 5 if options.quick else 100
    beside, flat = f"{FACTOR} times less data", "ratio at most 1.1"
    rows = []

    def compare(what: str, unit: str, ours: object, theirs: object) -> None:
        values = in_turn(ours, theirs, options.pairs)  # type: ignore[arg-type]
        rows.append(Row(f"growth: {what}", unit, values[0], beside, values[1], flat))

    # A pass each: the small data several times over, so that both take about as long.
    many = 2 if options.quick else FACTOR
    compare(
        "all batches of images",
        "µs/image",
        lambda: microseconds(large, None),
        lambda: sum(microseconds(small, None) for _ in range(many)) / many,
    )
    nets = CNN().to(memory_format=torch.channels_last), GPT()
    compare(
        "training on images",
        "µs/image",
        lambda: microseconds(large, steps, nets[0]),
        lambda: microseconds(small, steps, nets[0]),
    )
    with tempfile.TemporaryDirectory() as folder:
        base = TextDataModule(data_dir=options.data_dir)._find_files()[0].read_bytes()
        paths = Path(folder) / "small.txt", Path(folder) / "large.txt"
        for path, factor in zip(paths, (1, FACTOR), strict=True):
            path.write_bytes(base * factor)
        compare(
            "reading and tokenizing text",
            "µs/byte",
            lambda: preparation(paths[1]),
            lambda: sum(preparation(paths[0]) for _ in range(many)) / many,
        )
        few, more = (text(path, folder).train_dataloader() for path in paths)
        compare(
            "all batches of tokens",
            "µs/token",
            lambda: microseconds(more, None),
            lambda: sum(microseconds(few, None) for _ in range(many)) / many,
        )
        compare(
            "training on tokens",
            "µs/token",
            lambda: microseconds(more, steps, nets[1]),
            lambda: microseconds(few, steps, nets[1]),
        )
    show(rows, options.results)


if __name__ == "__main__":
    main()
