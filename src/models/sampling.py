"""How a token is drawn."""

import math

import torch
from torch import Tensor

from src.errors import InputError


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """One token number by (vocab_size,) float logits; what the arguments mean is said at `LanguageModel.generate`."""
    if temperature == 0:
        return int(logits.argmax())
    logits = logits / temperature
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf)
    probabilities = logits.softmax(dim=0)
    if top_p is not None:
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(dim=0) - ordered  # the probability of all likelier tokens
        probabilities[order[before >= top_p]] = 0
    return int(torch.multinomial(probabilities, 1, generator=generator))


def check_sampling(max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise InputError where an argument of `LanguageModel.generate` is out of its range."""
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens {max_new_tokens} is out of range: give at least 0")
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature {temperature} is out of range: give at least 0, where 0 takes the likeliest")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k {top_k} is out of range: give at least 1, or leave it out")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p {top_p} is out of range: give more than 0 and up to 1, or leave it out")
