"""Each benchmark measures, prints a table and keeps its values."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch

from src import ROOT
from src.engine.cli.cli import StarterCLI


def benchmark(*words: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words]
    done = subprocess.run(command, env=env, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_kept(results: Path, printed: str) -> dict[str, Any]:
    """The rows of a file of results, each of which was printed."""
    kept = json.loads(results.read_text())
    assert kept["machine"]["torch"] == torch.__version__
    for what, row in kept["rows"].items():
        assert what.split(":")[0].split(",")[0] in printed
        assert all(value > 0 for value in row["ours"])
        assert row["ratio"] == [a / b for a, b in zip(row["ours"], row["theirs"], strict=False)]
    rows: dict[str, Any] = kept["rows"]
    return rows


def test_a_benchmark_prints_a_table_and_keeps_its_values(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    assert check_kept(results, benchmark("reference.py", "--quick", "--results", str(results)))


def test_a_file_of_results_holds_one_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from table import Row, show

    path = tmp_path / "results.json"
    for name in ("one", "two"):
        show([Row(name, "s", [1.0])], path)
    results = json.loads(path.read_text())
    assert list(results["rows"]) == ["one", "two"]
    path.write_text(json.dumps({**results, "machine": {**results["machine"], "cores": 1000}}))
    assert "begins anew" not in capsys.readouterr().out
    show([Row("three", "s", [1.0])], path)
    assert "begins anew" in capsys.readouterr().out
    assert list(json.loads(path.read_text())["rows"]) == ["three"]


def test_ctrl_c_ends_a_benchmark_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from table import parse

    monkeypatch.setattr(sys, "argv", ["benchmarks/start.py"])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    parse("What it measures.")
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "start.py: stopped by Ctrl-C\n"
    sys.excepthook(ValueError, ValueError("what is wrong"), None)
    assert "ValueError: what is wrong" in capsys.readouterr().err


def test_the_first_pair_does_not_count_unless_it_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from table import in_turn

    for pairs, counted in ((1, ([0], [1])), (2, ([2, 4], [3, 5]))):
        take = iter(range(10)).__next__
        assert in_turn(take, take, pairs) == counted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pairs", "0"), "--pairs 0 is too small: give at least 1"),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (
                (("--data_dir", "nowhere"), "--data_dir nowhere: no such folder"),
                (("--results", "table.py"), "--results table.py holds no results"),
                (("--qick",), "unrecognized arguments: --qick"),
            )
        ),
    ],
)
def test_a_benchmark_says_what_it_cannot_do_before_it_measures(words: tuple[str, ...], message: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "data_path.py", *words]
    done = subprocess.run(command, env=env, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_what_an_ablation_undoes_is_in_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from ablation import CHANGES

    for recipe, _, values, undoing in CHANGES:
        for name in values:
            resolve_name(name)  # an AttributeError where it is not
        with pytest.raises(SystemExit) as stop:
            StarterCLI(["fit", f"--config=configs/{recipe}.yaml", *undoing, "--print_config"], time.perf_counter())
        assert not stop.value.code


@pytest.mark.slow
def test_all_benchmarks_run_in_turn_into_one_table(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    printed = benchmark("run.py", "--quick", "--results", str(results))
    rows = check_kept(results, printed)
    for name in ("reference", "start", "training", "batches", "generation", "growth", "memory", "mnist_fast"):
        assert any(what.startswith(name) for what in rows), name
        assert name in printed
    assert max(rows["memory: a run on MNIST, above the import"]["ours"]) <= 500
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"run", "table"}
    assert scripts == {line.split()[0] for line in printed.splitlines() if line.endswith(" ...")}
