"""Speed of this machine now: images per second of the seed's CNN in a plain PyTorch loop.

The loop trains channels last, batch 128, AdamW, on random images in memory, without data loading, metrics or logging;
in the precision that src.train chooses on this CPU, and in float32 too if that is bfloat16. On a slow machine it stops
early, after 20 seconds with imports. A target of T seconds in this project means T x (images per second in `REFERENCE`)
/ (images per second printed here), both in the precision of the run: the targets were set when this script printed
about 6,700 in bfloat16 on two cores.

    python benchmarks/reference.py [--repeats 9] [--batches 60] [--quick]
"""

import math
import statistics
import time

import torch
from table import Row, parse, show
from torch import nn

from src.engine.system.hardware import choose_precision

BATCH_SIZE = 128
REFERENCE = {"bf16-mixed": 6_700, "32-true": 4_300}  # images per second when the targets were set
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


def measure(batches: int, precision: str, seconds: float = math.inf) -> float:
    """Images per second over `batches` training steps, or fewer if `seconds` are over; five warm-up steps before.

    Args:
        batches: number of steps.
        precision: `bf16-mixed` or `32-true`.
        seconds: maximum time.
    """
    torch.manual_seed(0)
    net = build()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    images = torch.randn(BATCH_SIZE, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(10, (BATCH_SIZE,))
    end = time.perf_counter() + seconds
    for step in range(-5, batches):
        if step == 0:
            start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
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
    speeds: dict[str, list[float]] = {one: [] for one in dict.fromkeys((precision, "32-true"))}
    end = time.perf_counter() + SECONDS
    left = repeats * len(speeds)
    while left and (left > (repeats - 1) * len(speeds) or time.perf_counter() < end):
        for one, found in speeds.items():  # alternately
            found.append(measure(batches, one, (end - time.perf_counter()) / left))
            left -= 1
    for one, found in speeds.items():
        median = statistics.median(found)
        print(f"{one}: images/s  median {median:,.0f}  lowest {min(found):,.0f}  highest {max(found):,.0f}")
        print(f"{one}: 60 s here means {60 * REFERENCE[one] / median:.1f} s")
    show(
        [Row(f"reference: the seed's CNN, plain loop, {one}", "images/s", speeds[one]) for one in speeds],
        options.results,
    )


if __name__ == "__main__":
    main()
