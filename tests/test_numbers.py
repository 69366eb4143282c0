"""The figures of the README, on the full data and run after run."""

import statistics
from collections.abc import Callable

import pytest

from tests.conftest import Run


@pytest.mark.slow
def test_the_default_recipe_reaches_its_accuracy_on_the_full_mnist(train: Callable[..., Run], full_data: str) -> None:
    accuracies = []
    for seed in (1, 2, 3):
        run = train(f"--seed_everything={seed}", f"--data.data_dir={full_data}", sample=False)
        assert run.metrics["data_source"] == "official"
        accuracies.append(run.metrics["test/acc"])
    print(accuracies)
    assert statistics.mean(accuracies) >= 0.992


@pytest.mark.slow
def test_the_default_recipe_learns_the_sample(train: Callable[..., Run]) -> None:
    assert train().metrics["test/acc"] > 0.94
