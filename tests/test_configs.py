"""Every file in configs/ runs; a new one needs no new test."""

from collections.abc import Callable
from pathlib import Path

import pytest

from src import ROOT
from src.config import is_recipe, load_config
from tests.conftest import Run
from tests.data.test_image_folder import pictures

CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))


@pytest.fixture
def own_data(tmp_path: Path) -> dict[str, str]:
    """What must be given with the data of some recipes."""
    pictures(tmp_path / "pictures")
    return {"ImageFolderDataModule": f"--data.path={tmp_path / 'pictures'}"}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_runs(train: Callable[..., Run], config: str, own_data: dict[str, str]) -> None:
    data = load_config(config)[1].get("data", {}).get("class_path", "MNISTDataModule").rpartition(".")[2]
    words = [own_data[data]] if data in own_data else []
    run = train("--config", config, "--fast_dev_run", *words, sample=data == "MNISTDataModule")
    assert run.cli.trainer.state.finished
    assert any(name.startswith("test/") for name in run.cli.trainer.callback_metrics)
    if is_recipe(load_config(config)[1]):
        assert run.cli.config.name == Path(config).stem


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_says_first_what_it_is(config: str) -> None:
    assert (ROOT / config).read_text().startswith("# "), "begin the file with a comment that says what it is"
