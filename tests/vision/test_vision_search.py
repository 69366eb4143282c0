"""The searches of `configs/tune/`, which are about images of digits."""

import re
from pathlib import Path

import pytest

from src.engine.search.tuning import tune
from tests.engine.search.studies import trials

TINY = ("--data.source=sample", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--max_epochs=1")


def search(folder: Path, name: str, *more: str) -> int:
    words = ["--config", f"configs/tune/{name}.yaml", f"--trainer.default_root_dir={folder / 'logs'}", *TINY]
    return tune([*words, "--accelerator=cpu", *more])


@pytest.mark.slow
def test_the_search_of_the_readme_is_one(tmp_path: Path) -> None:
    assert search(tmp_path, "mnist", "--n_trials=1", "--max_epochs=2") == 0
    (trial,) = trials(tmp_path, "mnist")
    assert trial.state.name == "COMPLETE"
    own = "model.net.hidden" if trial.params["model.net"] == "MLP" else "model.net.width"
    assert set(trial.params) == {"model.net", own, "optimizer.lr", "data.batch_size"}


@pytest.mark.slow
def test_the_recipe_is_trained_and_tested_with_several_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(tmp_path, "seeds", "--n_trials=2", "--trainer.limit_test_batches=2") == 0
    assert re.search(r"mean \S+, standard deviation \S+, 2 runs: \S+, \S+", capsys.readouterr().out)
    assert len({trial.params["seed_everything"] for trial in trials(tmp_path, "seeds")}) == 2


@pytest.mark.slow
def test_learning_rates_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(tmp_path, "lr") == 0
    assert len({trial.params["optimizer.lr"] for trial in trials(tmp_path, "lr")}) == 6
    shown = capsys.readouterr().out
    assert "train the best choice" in shown
    assert len(re.findall(r"trials/version_\d", shown)) >= 5
