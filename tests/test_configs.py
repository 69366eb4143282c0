"""Every file in configs/ runs; a new one needs no new test."""

from collections.abc import Callable
from pathlib import Path

import pytest

from src import ROOT
from src.config import is_recipe, load_config
from tests.conftest import Run

CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_runs(train: Callable[..., Run], config: str) -> None:
    data = load_config(config)[1].get("data", {}).get("class_path", "MNISTDataModule")
    run = train("--config", config, "--fast_dev_run", sample=data.endswith("MNISTDataModule"))
    assert run.cli.trainer.state.finished
    assert any(name.startswith("test/") for name in run.cli.trainer.callback_metrics)
    if is_recipe(load_config(config)[1]):
        assert run.cli.config.name == Path(config).stem


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_says_first_what_it_is(config: str) -> None:
    assert (ROOT / config).read_text().startswith("# "), "begin the file with a comment that says what it is"
