"""Every recipe and overlay in configs/ runs; a new one needs no new test."""

from collections.abc import Callable
from pathlib import Path

import pytest

from src import ROOT
from src.engine.cli.config import load_config
from tests.conftest import QUIET, Run, program
from tests.given import with_options
from tests.recipes import FOUND, OVERLAYS, RECIPES

DEFAULT = "configs/default.yaml"
STRATEGIES = [path for path in OVERLAYS if path.startswith("configs/strategy/")]


# The default recipe may be a copy of another one.
@pytest.mark.parametrize("config", [*{(ROOT / path).read_text(): path for path in RECIPES}.values()])
def test_every_recipe_trains_and_tests(train: Callable[..., Run], tmp_path: Path, config: str) -> None:
    run = train(*with_options(config, tmp_path))
    assert run.cli.trainer.state.finished
    assert run.cli.config.name == load_config(config)[1].get("name", Path(config).stem)


@pytest.mark.parametrize("config", [path for path in OVERLAYS if path not in STRATEGIES])
def test_every_overlay_goes_with_the_default_recipe(train: Callable[..., Run], tmp_path: Path, config: str) -> None:
    assert train(*with_options(DEFAULT, tmp_path), "--config", config).cli.trainer.state.finished


@pytest.mark.parametrize("config", STRATEGIES)  # in a process of its own: a strategy starts a process group
def test_every_strategy_goes_with_the_default_recipe(tmp_path: Path, config: str) -> None:
    done = program(*with_options(DEFAULT, tmp_path), "--config", config, *QUIET)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("config", FOUND)
def test_every_config_says_first_what_it_is(config: str) -> None:
    assert (ROOT / config).read_text().startswith("# "), "begin the file with a comment that says what it is"
