"""Every image recipe learns: a few steps on little data beat chance by far."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Run, pictures
from tests.recipes import RECIPES

Train = Callable[..., Run]
SAMPLE = "--data.source=sample"
DEFAULT = "--config=configs/default.yaml"


@pytest.fixture
def recipe() -> tuple[str, ...]:
    return ()


def test_the_default_recipe_is_tested() -> None:
    assert "configs/default.yaml" in RECIPES


@pytest.mark.slow
def test_the_default_recipe_learns_digits(train: Train) -> None:
    run = train("fit", DEFAULT, SAMPLE, "--data.batch_size=64", "--max_epochs=1", "--trainer.limit_train_batches=40")
    assert run.cli.config.name == "default"
    assert run.metrics["val/acc"] > 0.5  # chance: 0.1


@pytest.mark.slow
def test_the_fast_recipe_learns_digits(train: Train) -> None:
    steps = ("--trainer.max_steps=20", "--trainer.val_check_interval=20")
    run = train("fit", "--config=configs/vision/mnist_fast.yaml", SAMPLE, *steps)
    assert run.metrics["val/acc"] > 0.5  # chance: 0.1


@pytest.mark.slow
def test_the_best_recipe_learns_digits(train: Train) -> None:
    short = ("--max_epochs=1", "--trainer.limit_train_batches=50", "--trainer.limit_val_batches=4")
    run = train("fit", "--config=configs/vision/mnist_best.yaml", SAMPLE, "--data.batch_size=32", *short)
    assert run.metrics["val/acc"] > 0.5  # chance: 0.1


@pytest.mark.slow
def test_the_image_folder_recipe_learns_colours(train: Train, tmp_path: Path) -> None:
    data = (f"--data.path={pictures(tmp_path / 'pictures', 20)}", "--data.image_size=32", "--data.batch_size=8")
    run = train("fit", "--config=configs/vision/image_folder.yaml", *data, "--max_epochs=4")
    assert run.metrics["val/loss"] < 0.4  # chance: 0.69
