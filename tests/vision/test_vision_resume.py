"""A run on images goes on, and is repeated, bit by bit, with its random changes of the images."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import Run
from tests.engine.runs.stops import differences_after_stops

Train = Callable[..., Run]

DEFAULT = ("--config=configs/default.yaml", "--data.source=sample")
IMAGES = (
    "--config=configs/default.yaml",
    "--model.net=CNN",
    "--model.net.width=4",
    "--model.net.hidden=16",
    "--model.net.dropout=0.3",
    "--data.source=sample",
    "--data.max_warp=1",
    "--max_epochs=2",
)  # 32 steps an epoch


@pytest.mark.slow
def test_a_run_on_images_that_is_stopped_goes_on_bit_by_bit(train: Train, tmp_path: Path) -> None:
    assert differences_after_stops(train, tmp_path, IMAGES, (1, 31, 40)) == []


@pytest.mark.slow
def test_other_workers_change_no_image(train: Train, tmp_path: Path) -> None:
    assert differences_after_stops(train, tmp_path, IMAGES, (40,), goes_on=["--data.num_workers=2"]) == []


@pytest.mark.slow
def test_the_default_recipe_repeats_bitwise(train: Train) -> None:
    first = train("fit", *DEFAULT, "--max_epochs=1", "--trainer.limit_train_batches=6", "--trainer.limit_val_batches=1")
    again = train("fit", "--config", str(first.folder / "config.yaml"))
    assert first.weights.keys() == again.weights.keys()
    assert all(torch.equal(value, again.weights[name]) for name, value in first.weights.items())
    assert "data_source: sample" in (again.folder / "hparams.yaml").read_text()
