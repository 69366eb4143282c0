"""Every file in configs/ runs; a new one needs no new test."""

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from src import ROOT
from src.engine.cli.config import import_class, load_config
from tests import toy
from tests.conftest import QUIET, Run, pictures, program
from tests.recipes import FOUND, OVERLAYS, RECIPES

Train = Callable[..., Run]
# Searches are run in tests/vision.
STRATEGIES = [path for path in OVERLAYS if path.startswith("configs/strategy/")]


@pytest.mark.parametrize("config", RECIPES)
def test_every_recipe_trains_tests_and_predicts(train: Train, tmp_path: Path, config: str) -> None:
    # What must be given with a recipe's data.
    given = {
        "ImageFolderDataModule": lambda: f"--data.path={pictures(tmp_path / 'pictures')}",
        "MNISTDataModule": lambda: "--data.source=sample",
    }
    path = load_config(config)[1]["data"]["class_path"]
    name = path.rpartition(".")[2]
    words = ("--config", config, "--fast_dev_run", *([given[name]()] if name in given else []))
    run = train(*words)
    assert run.cli.trainer.state.finished
    assert any(metric.startswith("test/") for metric in run.cli.trainer.callback_metrics)
    assert run.cli.config.name == Path(config).stem
    # One that compares images with texts must be told these.
    if is_overridden("predict_dataloader", import_class(path), LightningDataModule) and name != "CaptionDataModule":
        assert train("predict", *words).cli.trainer.state.finished


@pytest.mark.parametrize("config", [path for path in OVERLAYS if path not in STRATEGIES])
def test_every_overlay_goes_with_a_recipe(train: Train, config: str) -> None:
    run = train("--config", toy.RECIPE, "--config", config, "--fast_dev_run")
    assert run.cli.trainer.state.finished
    assert "test/acc" in run.cli.trainer.callback_metrics


@pytest.mark.parametrize("config", STRATEGIES)
def test_every_strategy_goes_with_a_recipe(config: str) -> None:  # in a process: it makes a process group, once
    done = program("--config", toy.RECIPE, "--config", config, "--fast_dev_run", *QUIET)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "test/acc" in done.stdout


@pytest.mark.parametrize("config", FOUND)
def test_every_config_says_first_what_it_is(config: str) -> None:
    assert (ROOT / config).read_text().startswith("# "), "begin the file with a comment that says what it is"
