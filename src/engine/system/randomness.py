"""Random numbers that depend on a run's seed and its place in the run alone, so that a run can go on anywhere."""

import hashlib
import os
from typing import Any

import torch


def run_seed() -> int:
    """The seed of this run, as Lightning's `seed_everything` set it; else the one torch started with."""
    given = os.environ.get("PL_GLOBAL_SEED")
    return int(given) if given else torch.initial_seed() % 2**32


def seed_of(*numbers: int) -> int:
    """A seed for a place named by numbers of at least 0, such as epoch and batch; different places, different seeds."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")


def place_of(trainer: Any) -> tuple[int, int, int]:
    """Epoch, batch and process in which a Trainer is, or will be next."""
    fit = trainer.fit_loop
    return fit.epoch_progress.current.processed, fit.epoch_loop.batch_progress.current.ready, trainer.global_rank
