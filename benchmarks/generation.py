"""Tokens per second of generation with a cache, and without, when the whole context is processed for every token.

Both generate the same 512 tokens, greedily, with an untrained GPT of block_size 512. They alternate, A B A B ..., after
one pair that does not count.

    python benchmarks/generation.py [--pairs 9] [--quick] [--tokens 512]
"""

import time
from functools import partial

import torch
from table import Row, alternate, parse, show

from src.text.gpt import GPT
from src.text.language_model import LanguageModel


def tokens_per_second(task: LanguageModel, count: int, use_cache: bool) -> tuple[float, list[int]]:
    start = time.perf_counter()
    text = list(task.generate(torch.tensor([10]), count, temperature=0, use_cache=use_cache))
    return count / (time.perf_counter() - start), text


def main() -> None:
    options = parse(__doc__, ("--tokens", {"type": int, "default": 512}))
    count = 32 if options.quick else options.tokens
    torch.manual_seed(0)
    task = LanguageModel(GPT(block_size=512))
    for parameter in task.parameters():  # the blocks of a new GPT are the identity: all tokens would be alike
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    texts: list[list[int]] = []

    def speed(use_cache: bool) -> float:
        value, text = tokens_per_second(task, count, use_cache)
        texts.append(text)
        return value

    ours, theirs = alternate(partial(speed, True), partial(speed, False), options.pairs)
    assert all(text == texts[0] for text in texts)
    show([Row("generation, cached", "tokens/s", ours, "without a cache", theirs, "ratio at least 5")], options.results)


if __name__ == "__main__":
    main()
