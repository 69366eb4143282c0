"""What the tests of searches share: a small search as a file, run here or in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from src import ROOT
from src.engine.search.search import Search, open_search
from src.engine.search.trials import run_trials
from src.engine.search.tuning import _parse, tune
from tests import toy

TINY = ("--data.size=128", "--accelerator=cpu")  # four steps an epoch


def spec(folder: Path, **changes: Any) -> str:
    """A small search as a file; None takes a key away."""
    tree: dict[str, Any] = {
        "recipe": toy.RECIPE,
        "options": {"model.net": "tests.toy.ToyMLP", "trainer.max_epochs": 1},
        "space": {"model.net.hidden": {"int": [4, 32]}, "optimizer.lr": {"float": [1e-4, 1e-1], "log": True}},
        "n_trials": 3,
    }
    tree = {key: value for key, value in (tree | changes).items() if value is not None}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def words(folder: Path, *more: str, **changes: Any) -> list[str]:
    return ["--config", spec(folder, **changes), f"--trainer.default_root_dir={folder / 'logs'}", *TINY, *more]


def run(folder: Path, *more: str, **changes: Any) -> int:
    """The whole command in this process; gives its exit code."""
    return tune(words(folder, *more, **changes))


def search(folder: Path, *more: str, **changes: Any) -> list[Any]:
    """The trials of a search, without the report on it."""
    found = opened(folder, *more, **changes)
    run_trials(found)
    return found.study.get_trials()


def opened(folder: Path, *more: str, **changes: Any) -> Search:
    """A search before its first trial."""
    return open_search(_parse(words(folder, *more, **changes)), probes=False)


def start(folder: Path, *more: str, **changes: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "src.tune", *words(folder, *more, **changes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def trials(folder: Path, name: str = "own") -> list[Any]:
    """What the file of a study says."""
    from optuna import load_study
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(folder / "logs" / name / "study.log")))
    found: list[Any] = load_study(study_name=name, storage=storage).trials
    return found
