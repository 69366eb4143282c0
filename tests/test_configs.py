"""Every file in configs/ runs; a new one needs no new test."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from src import ROOT
from src.engine.cli.config import import_class, load_config
from src.engine.runs.run_record import read_metrics
from tests import toy
from tests.conftest import QUIET, Run, pictures, program
from tests.recipes import FOUND, OVERLAYS, RECIPES

Train = Callable[..., Run]
# Searches are run in tests/vision.
LOGGERS = ("configs/logger/mlflow.yaml", "configs/logger/wandb.yaml")  # of packages that may not be installed
STRATEGIES = [path for path in OVERLAYS if path.startswith("configs/strategy/")]


@pytest.mark.slow
@pytest.mark.parametrize("config", RECIPES)
def test_every_recipe_trains_tests_and_predicts(train: Train, tmp_path: Path, config: str) -> None:
    # What must be given with a recipe's data.
    given = {
        "ImageFolderDataModule": lambda: f"--data.path={pictures(tmp_path / 'pictures')}",
        "MNISTDataModule": lambda: "--data.source=sample",
        "DigitScenesDataModule": lambda: "--data.source=sample",
        "SpokenWordsDataModule": lambda: "--data.source=synthetic",
    }
    path = load_config(config)[1]["data"]["class_path"]
    name = path.rpartition(".")[2]
    few = ["--data.batch_size=8"] if "batch_size" in inspect.signature(import_class(path)).parameters else []
    words = ("--config", config, *([given[name]()] if name in given else []), *few)
    run = train(*words, "--config=configs/debug/one_batch.yaml")
    assert run.folder.parent.name == Path(config).stem
    assert metrics_of_test(run.folder) == metrics_of_test(train("test", f"--run={run.folder}").folder)
    # One that compares images with texts must be told these.
    is_compared = hasattr(run.cli.model, "name_classes")
    if is_overridden("predict_dataloader", import_class(path), LightningDataModule) and not is_compared:
        assert train("predict", *words, "--fast_dev_run").cli.trainer.state.finished


def metrics_of_test(folder: Path) -> dict[str, float]:
    """The metrics of a test in `metrics.json`."""
    found = {name: value for name, value in read_metrics(folder).items() if name.startswith("test/")}
    assert found
    return found


@pytest.mark.slow
@pytest.mark.parametrize("config", [path for path in OVERLAYS if path not in STRATEGIES and path not in LOGGERS])
def test_the_test_after_training_with_an_overlay_is_that_of_the_checkpoint(train: Train, config: str) -> None:
    run = train("--config", toy.RECIPE, "--config", config, "--max_epochs=2", "--data.size=96")
    assert metrics_of_test(run.folder) == metrics_of_test(train("test", f"--run={run.folder}").folder)


@pytest.mark.slow
@pytest.mark.parametrize("config", [path for path in OVERLAYS if path in LOGGERS])
def test_every_logger_is_understood(train: Train, config: str) -> None:
    assert train("--config", toy.RECIPE, "--config", config, "--fast_dev_run").cli.loggers


@pytest.mark.slow
@pytest.mark.parametrize("config", STRATEGIES)
def test_the_test_after_training_with_a_strategy_is_that_of_the_checkpoint(tmp_path: Path, config: str) -> None:
    # In processes of their own: each makes a process group, once.
    words = (*QUIET, f"--trainer.default_root_dir={tmp_path}")
    done = program("--config", toy.RECIPE, "--config", config, "--max_epochs=2", "--data.size=96", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = tmp_path.glob("*/version_0")
    done = program("test", f"--run={folder}", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert metrics_of_test(folder) == metrics_of_test(folder / "test_0")


@pytest.mark.parametrize("config", FOUND)
def test_every_config_says_first_what_it_is(config: str) -> None:
    assert (ROOT / config).read_text().startswith("# "), "begin the file with a comment that says what it is"
