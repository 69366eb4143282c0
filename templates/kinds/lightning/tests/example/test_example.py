"""The data and the module of this project; the default recipe learns."""

from collections.abc import Callable

import torch

from src.example.data import POINTS, ExampleDataModule, curves
from src.example.module import ExampleModule
from tests.conftest import Run


def test_the_default_recipe_learns(train: Callable[..., Run]) -> None:
    assert train().metrics["test/loss"] < 0.1  # of noise of 0.25


def test_a_batch_has_the_documented_shapes() -> None:
    data = ExampleDataModule(batch_size=10, size=50)
    data.setup("fit")
    noisy, clean = next(iter(data.train_dataloader()))
    assert noisy.shape == clean.shape == (10, POINTS)
    assert ExampleModule()(noisy).shape == (10, POINTS)


def test_another_seed_gives_other_curves() -> None:
    first, same, other = (curves(4, seed)[:][0] for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
