"""Loggers beside TensorBoard: one overlay each."""

import csv
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from src.engine.runs.run_record import read_metrics
from src.engine.system.errors import InputError
from tests.conftest import QUIET, Run, program, wait_for
from tests.toy import RECIPE

Train = Callable[..., Run]
SMALL = ("--model.net.width=4", "--config=configs/debug/one_batch.yaml")


def test_csv_is_written_to_the_run_folder(train: Train) -> None:
    run = train(*SMALL, "--config=configs/logger/csv.yaml")
    with (run.folder / "csv" / "version_0" / "metrics.csv").open() as file:
        logged = [row["test/acc"] for row in csv.DictReader(file) if row["test/acc"]]
    assert [float(value) for value in logged] == [run.metrics["test/acc"]]
    assert list(run.folder.glob("events.out.tfevents.*"))
    logger = yaml.safe_load((run.folder / "config.yaml").read_text())["trainer"]["logger"]
    assert [one["init_args"]["save_dir"] for one in logger] == ["."]


def run_of(folder: Path, config: str) -> Path:
    """The folder of a run in a process of its own: both packages keep what an earlier run has opened."""
    words = ("--config", RECIPE, *SMALL, f"--config={config}", f"--trainer.default_root_dir={folder / 'logs'}")
    done = program(*words, *QUIET, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "logs" / "toy" / "version_0"


@pytest.mark.slow
def test_mlflow_writes_its_runs_to_a_file(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "logs").mkdir()
    run = run_of(tmp_path, "configs/logger/mlflow.yaml")
    with sqlite3.connect(tmp_path / "logs" / "mlflow.db") as file:
        ((value,),) = file.execute("select value from latest_metrics where key = 'test/acc'").fetchall()
        ((width,),) = file.execute("select value from params where key like '%width'").fetchall()
    assert value == pytest.approx(read_metrics(run)["test/acc"])
    assert width == "4"


@pytest.mark.slow
def test_weights_and_biases_works_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    (kept,) = run_of(tmp_path, "configs/logger/wandb.yaml").glob("wandb/offline-run-*/*.wandb")
    # Another process writes, which the end of the run can be a moment before.
    assert "test/acc" in wait_for("test/acc", kept, 60)


@pytest.mark.slow
def test_a_logger_that_cannot_be_created_leaves_no_run_folder(train: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--trainer\.logger cannot be used"):
        train(*SMALL, "--config=configs/logger/mlflow.yaml", "--trainer.logger.tracking_uri=nosql://x")
    assert not list((tmp_path / "logs").rglob("version_*"))
