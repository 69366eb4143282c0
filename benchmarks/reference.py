"""Speed of this machine now: images per second of the seed's CNN in a plain PyTorch loop.

The loop trains in the precision that src.train chooses on this CPU, channels last, batch 128, AdamW, on random images
in memory, without data loading, metrics or logging. On a slow machine it stops early, after 20 seconds with imports.
A target of T seconds in this project means T x 6,700 / (images per second printed here): the targets were set when this
script printed about 6,700 on two cores.

    python benchmarks/reference.py [--repeats 9] [--batches 60] [--quick]
"""

import math
import statistics
import time

import torch
from table import Row, parse, show
from torch import nn
from training import autocast

from src.engine.system.hardware import choose_precision

BATCH_SIZE = 128
REFERENCE = 6_700  # images per second when the targets were set
SECONDS = 12  # maximum for all repeats; imports take up to 8 more


def build() -> nn.Module:
    """The seed's CNN; a copy, so that later changes to the project's CNN do not affect the reference."""
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


def measure(batches: int, seconds: float = math.inf) -> float:
    """Images per second over `batches` training steps, or fewer if `seconds` are over; five warm-up steps before."""
    torch.manual_seed(0)
    net = build()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    images = torch.randn(BATCH_SIZE, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(10, (BATCH_SIZE,))
    precision = autocast()
    end = time.perf_counter() + seconds
    for step in range(-5, batches):
        if step == 0:
            start = time.perf_counter()
        with precision:
            loss = nn.functional.cross_entropy(net(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 0 and time.perf_counter() > end:
            break
    return (step + 1) * BATCH_SIZE / (time.perf_counter() - start)


def main() -> None:
    options = parse(__doc__, ("--repeats", {"type": int, "default": 9}), ("--batches", {"type": int, "default": 60}))
    repeats, batches = (2, 10) if options.quick else (options.repeats, options.batches)
    precision, reason = choose_precision("cpu")
    print(f"precision {precision}: {reason}")
    speeds: list[float] = []
    end = time.perf_counter() + SECONDS
    while not speeds or (len(speeds) < repeats and time.perf_counter() < end):
        speeds.append(measure(batches, (end - time.perf_counter()) / (repeats - len(speeds))))
    median = statistics.median(speeds)
    print(f"images/s  median {median:,.0f}  lowest {min(speeds):,.0f}  highest {max(speeds):,.0f}")
    print(f"60 s here means {60 * REFERENCE / median:.1f} s")
    show([Row("reference: the seed's CNN, plain loop", "images/s", speeds)], options.results)


if __name__ == "__main__":
    main()
