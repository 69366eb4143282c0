"""How fast is this machine right now? Images a second of the seed's CNN in a plain PyTorch loop.

The loop is bf16, channels last, batch 128, AdamW, on random images in memory, without data loading, metrics
or logging. A target of T seconds in this project means T x 6,700 / (images a second printed here): figures
were set in hours in which this script printed about 6,700 on two cores.

    python benchmarks/reference.py [--repeats 9] [--batches 60] [--quick]
"""

import statistics
import time

import torch
from table import Row, parse, show
from torch import nn

BATCH_SIZE = 128
REFERENCE = 6_700  # images a second in the hours in which the targets were set


def build() -> nn.Module:
    """The seed's CNN, written out so that a change of ours does not move the yardstick."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    ).to(memory_format=torch.channels_last)


def measure(batches: int) -> float:
    """Images a second over `batches` training steps, after five that are not counted."""
    torch.manual_seed(0)
    net = build()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    images = torch.randn(BATCH_SIZE, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(10, (BATCH_SIZE,))
    for step in range(batches + 5):
        if step == 5:
            start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(net(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return batches * BATCH_SIZE / (time.perf_counter() - start)


def main() -> None:
    options = parse(__doc__, ("--repeats", {"type": int, "default": 9}), ("--batches", {"type": int, "default": 60}))
    repeats, batches = (2, 10) if options.quick else (options.repeats, options.batches)
    speeds = [measure(batches) for _ in range(repeats)]
    median = statistics.median(speeds)
    print(f"images/s  median {median:,.0f}  lowest {min(speeds):,.0f}  highest {max(speeds):,.0f}")
    print(f"60 s here means {60 * REFERENCE / median:.1f} s")
    show([Row("reference: the seed's CNN, plain loop", "images/s", speeds)], options.results)


if __name__ == "__main__":
    main()
