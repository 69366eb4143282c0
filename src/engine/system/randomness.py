"""Seeds that depend only on a run's seed and position, so that a continued run draws the same numbers."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def run_seed() -> int:
    """The seed set by Lightning's `seed_everything`, else torch's initial seed."""
    given = os.environ.get("PL_GLOBAL_SEED")
    return int(given) if given else torch.initial_seed() % 2**32


def derive_seed(*numbers: int) -> int:
    """A seed from non-negative numbers such as epoch and batch; different numbers give different seeds."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")


def step_position(trainer: Any) -> tuple[int, int, int]:
    """Epoch, batch and process rank of a Trainer's current or next training step."""
    fit = trainer.fit_loop
    return fit.epoch_progress.current.processed, fit.epoch_loop.batch_progress.current.ready, trainer.global_rank


def step_generator(trainer: Any, device: torch.device) -> torch.Generator:
    """A source of randomness for a Trainer's current training step, which is the same whenever this step is made."""
    return torch.Generator(device).manual_seed(derive_seed(run_seed(), *step_position(trainer)))


@contextmanager
def counting() -> Iterator[None]:
    """Let metrics count with `torch.bincount` where algorithms must be deterministic.

    torchmetrics' other way takes gigabytes and seconds a batch; integer sums do not depend on their order.
    """
    was, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warns)
