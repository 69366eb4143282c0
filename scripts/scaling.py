"""Memory per device and bytes sent per step, for GPTs of several sizes: the tables of docs/scaling.md.

python scripts/scaling.py [--write]

Weights are counted in a network on the meta device. Activations are the tensors that autograd saves in a forward pass
with fake tensors, so that nothing is computed or allocated; networks of one and two blocks are traced, and the result
is extrapolated to more.
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
# Bytes per weight of AdamW in mixed precision: float32 weights, gradients and two moments.
WEIGHT, GRADIENT, MOMENTS = 4, 4, 8
# Bytes per weight when FSDP2 gathers weights (configs/strategy/fsdp2.yaml) and reduces gradients.
GATHERED, REDUCED = 2, 4


@dataclass(frozen=True)
class Size:
    """Size of a GPT, and sequences per device."""

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
    """Number of weights of the whole network and of one block."""
    with torch.device("meta"):
        one, two = (sum(p.numel() for p in network(size, layers).parameters()) for layers in (1, 2))
    block = two - one
    return one + (size.num_layers - 1) * block, block


@cache
def saved_bytes(size: Size, num_layers: int, dtype: torch.dtype | None) -> int:
    """Bytes that autograd saves for the backward pass, with logits and loss, of a network of `num_layers` blocks."""
    storages: dict[int, int] = {}
    alive: list[torch.Tensor] = []

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with FakeTensorMode():
        net = network(size, num_layers)
        tokens = torch.zeros(size.sequences, size.block_size, dtype=torch.int64)
        weights = {p.untyped_storage()._cdata for p in net.parameters()}
        with (
            torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor),
            torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None),
        ):
            logits = net(tokens)
            F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum")
        record(logits.float())  # stands for their gradient, the largest tensor of the backward pass
    return sum(nbytes for storage, nbytes in storages.items() if storage not in weights)


def activations(size: Size, checkpointing: bool, dtype: torch.dtype | None = torch.bfloat16) -> int:
    """Peak bytes of the activations on one device."""
    one, two = (saved_bytes(size, layers, dtype) for layers in (1, 2))
    if not checkpointing:
        return one + (size.num_layers - 1) * (two - one)
    # The input of each block in float32, and in the backward pass the activations of one block.
    return one + size.num_layers * 4 * size.sequences * size.block_size * size.d_model


def memory(size: Size, strategy: str, devices: int, dtype: torch.dtype | None = torch.bfloat16) -> int:
    """Peak bytes on one device in a training step."""
    weights, block = count_weights(size)
    state = (WEIGHT + GRADIENT + MOMENTS) * weights
    activation_bytes = activations(size, "checkpointing" in strategy, dtype)
    if strategy == "ddp":
        return state + activation_bytes
    # This device's shard of the state; gathered: the weights outside the blocks and two blocks (the next one is
    # prefetched); and the gradient of one block before it is reduced.
    outside = weights - size.num_layers * block
    return state // devices + GATHERED * (outside + 2 * block) + REDUCED * max(block, outside) + activation_bytes


def bytes_sent(size: Size, strategy: str, devices: int) -> int:
    """Bytes that one device sends per step, with ring algorithms."""
    weights, _ = count_weights(size)
    per_pass = (devices - 1) / devices * weights
    if strategy == "ddp":
        return int(2 * GRADIENT * per_pass)  # reduce and gather gradients
    return int((2 * GATHERED + REDUCED) * per_pass)  # gather weights forward and backward, reduce gradients


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def report() -> str:
    """All tables, in Markdown."""
    strategies = ("ddp", "fsdp2", "fsdp2 with activation checkpointing")
    lines = []
    for strategy in strategies:
        columns = (f"{count:,} device{'s' * (count > 1)}" for count in DEVICES)
        head = ["GPT", "weights", *columns, "of which activations", "sent per step"]
        rows = []
        for size in SIZES:
            weights, _ = count_weights(size)
            cells = [f"{memory(size, strategy, count) / GIB:.1f}" for count in DEVICES]
            cells.append(f"{activations(size, 'checkpointing' in strategy) / GIB:.1f}")
            cells.append(f"{bytes_sent(size, strategy, 1024) / GIB:.1f}")
            rows.append([size.name, f"{weights / 1e9:.2f}", *cells])
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
