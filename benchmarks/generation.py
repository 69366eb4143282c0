"""Tokens a second of cached generation beside generation that reads the whole context for every token.

Both write the same greedy text of 512 tokens with an untrained GPT whose block_size is 512. They run in turn,
A B A B ..., after one pair that is not counted.

    python benchmarks/generation.py [--pairs 9] [--tokens 512]
"""

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from src.models.gpt import GPT
from src.models.language_model import LanguageModel


def tokens_per_second(task: LanguageModel, count: int, use_cache: bool) -> tuple[float, list[int]]:
    start = time.perf_counter()
    text = list(task.generate(torch.tensor([10]), count, temperature=0, use_cache=use_cache))
    return count / (time.perf_counter() - start), text


def main() -> None:
    parser = argparse.ArgumentParser(description="Cached generation beside generation without a cache.")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()

    torch.manual_seed(0)
    task = LanguageModel(GPT(block_size=512))
    for parameter in task.parameters():  # a new GPT's blocks are the identity, whose text would be dull
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    pairs = []
    for pair in range(options.pairs + 1):
        cached, text = tokens_per_second(task, options.tokens, use_cache=True)
        uncached, same = tokens_per_second(task, options.tokens, use_cache=False)
        assert text == same
        if pair:
            pairs.append((cached, uncached))

    table = Table("tokens/s", "median", "lowest", "highest")
    for name, values in (
        ("with cache", [a for a, _ in pairs]),
        ("without", [b for _, b in pairs]),
        ("ratio", [a / b for a, b in pairs]),
    ):
        table.add_row(name, *(f"{f(values):,.1f}" for f in (statistics.median, min, max)))
    Console().print(table)


if __name__ == "__main__":
    main()
