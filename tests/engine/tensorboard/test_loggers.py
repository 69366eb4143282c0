"""Loggers beside TensorBoard: one overlay each."""

import csv
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from src.engine.system.errors import InputError
from tests.conftest import Run, wait_for

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


@pytest.mark.slow
def test_mlflow_writes_its_runs_to_a_file(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    run = train(*SMALL, "--config=configs/logger/mlflow.yaml")
    with sqlite3.connect(tmp_path / "logs" / "mlflow.db") as file:
        ((value,),) = file.execute("select value from latest_metrics where key = 'test/acc'").fetchall()
        ((width,),) = file.execute("select value from params where key like '%width'").fetchall()
    assert value == pytest.approx(run.metrics["test/acc"])
    assert width == "4"


@pytest.mark.slow
def test_weights_and_biases_works_without_a_network(train: Train) -> None:
    wandb = pytest.importorskip("wandb")
    run = train(*SMALL, "--config=configs/logger/wandb.yaml")
    wandb.finish()
    (kept,) = run.folder.glob("wandb/offline-run-*/*.wandb")
    # Another process writes, which `finish` can be a moment before.
    assert "test/acc" in wait_for("test/acc", kept, 60)


def test_a_logger_that_cannot_be_created_leaves_no_run_folder(train: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--trainer\.logger cannot be used"):
        train(*SMALL, "--config=configs/logger/mlflow.yaml", "--trainer.logger.tracking_uri=nosql://x")
    assert not list((tmp_path / "logs").rglob("version_*"))
