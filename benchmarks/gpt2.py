"""Training speed of this project's GPT and of GPT-2 in `transformers`.

Both have the same width, depth, heads, context and vocabulary, and train in the same plain loop: same precision, AdamW,
same random tokens in memory, no dropout.

    python benchmarks/gpt2.py [--pairs 9] [--quick]
"""

import time
from functools import partial

import torch
from table import Row, alternate, parse, show
from torch import nn
from torch.nn import functional as F
from training import autocast
from transformers import GPT2Config, GPT2LMHeadModel

from src.text.gpt import GPT

SIZES = {"vocab_size": 256, "d_model": 128, "num_heads": 2, "num_layers": 4}


class GPT2(nn.Module):
    """GPT-2 with the interface of `GPT`."""

    def __init__(self, block_size: int) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=SIZES["vocab_size"],
            n_positions=block_size,
            n_embd=SIZES["d_model"],
            n_head=SIZES["num_heads"],
            n_layer=SIZES["num_layers"],
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
        self.net = GPT2LMHeadModel(config)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.net(tokens).logits


def tokens_per_second(net: nn.Module, batch: torch.Tensor, steps: int) -> float:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    for step in range(steps + 3):
        if step == 3:
            start = time.perf_counter()
        with autocast():
            loss = F.cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return steps * batch[:, 1:].numel() / (time.perf_counter() - start)


def main() -> None:
    options = parse(__doc__)
    steps = 3 if options.quick else 20
    rows = []
    for block_size in (128, 256):
        torch.manual_seed(0)
        ours, theirs = GPT(block_size=block_size, **SIZES), GPT2(block_size)
        batch = torch.randint(256, (8, block_size + 1))
        speed = partial(tokens_per_second, batch=batch, steps=steps)
        speeds = alternate(partial(speed, ours), partial(speed, theirs), options.pairs)
        what = f"training: GPT, context {block_size}"
        rows.append(Row(what, "tokens/s", speeds[0], "transformers' GPT-2", speeds[1], "ratio at least 1.3"))
    show(rows, options.results)


if __name__ == "__main__":
    main()
