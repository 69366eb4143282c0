"""Every file in configs/ runs; a new one needs no new test."""

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from src import ROOT
from src.engine.cli.config import import_class, is_recipe, load_config
from tests.conftest import QUIET, Run, pictures, program

# Searches are run in test_tune.py.
FOUND = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))
CONFIGS = [path for path in FOUND if not path.startswith("configs/tune/")]


RECIPES = [config for config in CONFIGS if is_recipe(load_config(config)[1])]
Start = Callable[..., Run]


@pytest.fixture
def start(train: Start, tmp_path: Path) -> Start:
    """Run a configuration with what must be given with its data."""
    pictures(tmp_path / "pictures")
    own_data = {"ImageFolderDataModule": f"--data.path={tmp_path / 'pictures'}"}

    def run(config: str, *words: str) -> Run:
        data = load_config(config)[1].get("data", {}).get("class_path", "MNISTDataModule").rpartition(".")[2]
        given = [own_data[data]] if data in own_data else []
        return train(*words, "--config", config, "--fast_dev_run", *given, sample=data == "MNISTDataModule")

    return run


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_runs(start: Start, config: str) -> None:
    if config.startswith("configs/strategy/"):  # these make a process group, which a process has once
        done = program("--config", config, "--fast_dev_run", "--data.source=sample", *QUIET)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "test/acc" in done.stdout
        return
    run = start(config)
    assert run.cli.trainer.state.finished
    assert any(name.startswith("test/") for name in run.cli.trainer.callback_metrics)
    if is_recipe(load_config(config)[1]):
        assert run.cli.config.name == Path(config).stem


@pytest.mark.parametrize("config", [config for config in RECIPES if "clip" not in config])  # which must be told classes
def test_every_recipe_predicts(start: Start, config: str) -> None:
    data = import_class(load_config(config)[1]["data"]["class_path"])
    if not is_overridden("predict_dataloader", data, LightningDataModule):
        pytest.skip(f"{data.__name__} has nothing to predict")
    assert start(config, "predict").cli.trainer.state.finished


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_says_first_what_it_is(config: str) -> None:
    assert (ROOT / config).read_text().startswith("# "), "begin the file with a comment that says what it is"
