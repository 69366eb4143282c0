"""Memory of each device and bytes it sends in a step, for GPTs of many sizes: the tables of docs/scaling.md.

python scripts/scaling.py [--write]

Weights are counted on a network built on the meta device. Activations are what autograd keeps of a forward pass that is
traced with fake tensors, so that nothing is computed or allocated: for networks of one and two blocks, of which the
rest follows.
"""

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from src.text.gpt import GPT

DOCS = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- printed by scripts/scaling.py -->", "<!-- end -->"
DEVICES = (1, 8, 64, 1024)
GIB = 2**30
# AdamW in mixed precision: float32 weights, gradients and two moments.
WEIGHT, GRADIENT, MOMENTS = 4, 4, 8
# What FSDP2 gathers weights in (configs/strategy/fsdp2.yaml), and reduces gradients in.
GATHERED, REDUCED = 2, 4


@dataclass(frozen=True)
class Size:
    """A GPT and what one device sees of a batch."""

    name: str
    num_layers: int
    d_model: int
    num_heads: int
    vocab_size: int = 50_304
    block_size: int = 2048
    sequences: int = 1


SIZES = (
    Size("124M", 12, 768, 12),
    Size("350M", 24, 1024, 16),
    Size("770M", 36, 1280, 20),
    Size("1.6B", 48, 1600, 20),
    Size("6.7B", 32, 4096, 32),
    Size("13B", 40, 5120, 40),
    Size("30B", 48, 7168, 56),
    Size("70B", 86, 8192, 64),
)


def network(size: Size, num_layers: int) -> GPT:
    return GPT(size.vocab_size, size.block_size, size.d_model, size.num_heads, num_layers, tie_weights=True)


@cache
def count_weights(size: Size) -> tuple[int, int]:
    """Weights of the whole network and of one block."""
    with torch.device("meta"):
        one, two = (sum(p.numel() for p in network(size, layers).parameters()) for layers in (1, 2))
    block = two - one
    return one + (size.num_layers - 1) * block, block


@cache
def kept(size: Size, num_layers: int, dtype: torch.dtype | None) -> int:
    """Bytes that autograd keeps for the backward pass of a network with so many blocks, logits and loss included."""
    found: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with FakeTensorMode():
        net = network(size, num_layers)
        tokens = torch.zeros(size.sequences, size.block_size, dtype=torch.int64)
        weights = {p.untyped_storage()._cdata for p in net.parameters()}
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None),
        ):
            logits = net(tokens)
            F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum")
        note(logits.float())  # their gradient, the largest tensor of the backward pass
    return sum(bytes_ for storage, bytes_ in found.items() if storage not in weights)


def activations(size: Size, checkpointing: bool, dtype: torch.dtype | None = torch.bfloat16) -> int:
    """Bytes of a device's activations at their peak."""
    one, two = (kept(size, layers, dtype) for layers in (1, 2))
    if not checkpointing:
        return one + (size.num_layers - 1) * (two - one)
    # What each block is given, in float32, and in the backward pass all of one block.
    return one + size.num_layers * 4 * size.sequences * size.block_size * size.d_model


def memory(size: Size, strategy: str, devices: int, dtype: torch.dtype | None = torch.bfloat16) -> int:
    """Bytes of one device at the peak of a step."""
    weights, block = count_weights(size)
    state = (WEIGHT + GRADIENT + MOMENTS) * weights
    kept_bytes = activations(size, "checkpointing" in strategy, dtype)
    if strategy == "ddp":
        return state + kept_bytes
    # A part of the state; what lies outside of the blocks, and two blocks, one of them ahead, as they are gathered; and
    # the gradient of one block before it is reduced.
    outside = weights - size.num_layers * block
    return state // devices + GATHERED * (outside + 2 * block) + REDUCED * max(block, outside) + kept_bytes


def sent(size: Size, strategy: str, devices: int) -> int:
    """Bytes that one device sends in a step, by ring algorithms."""
    weights, _ = count_weights(size)
    once = (devices - 1) / devices * weights
    if strategy == "ddp":
        return int(2 * GRADIENT * once)  # reduce and gather gradients
    return int((2 * GATHERED + REDUCED) * once)  # gather weights forward and backward, reduce gradients


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def report() -> str:
    """All tables, in Markdown."""
    strategies = ("ddp", "fsdp2", "fsdp2 with activation checkpointing")
    lines = []
    for strategy in strategies:
        head = ["GPT", "weights", *(f"{count:,} devices" for count in DEVICES), "activations in it", "sent in a step"]
        rows = []
        for size in SIZES:
            weights, _ = count_weights(size)
            cells = [f"{memory(size, strategy, count) / GIB:.1f}" for count in DEVICES]
            inside = f"{activations(size, 'checkpointing' in strategy) / GIB:.1f}"
            rows.append([size.name, f"{weights / 1e9:.2f}", *cells, inside, f"{sent(size, strategy, 1024) / GIB:.1f}"])
        lines += [f"### {strategy}", "", *table(head, rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the tables of docs/scaling.md")
    options: Any = parser.parse_args()
    text = report()
    if options.write:
        before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        DOCS.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
