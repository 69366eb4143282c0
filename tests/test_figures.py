"""docs/figures.md is what its script writes, and a figure can be had again."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from src import ROOT
from tests import toy

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "benchmarks")
    import figures
    from table import RESULTS


@pytest.fixture
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def test_the_page_is_what_the_script_writes(results: dict[str, Any]) -> None:
    assert (ROOT / "docs" / "figures.md").read_text(encoding="utf-8") == figures.page(results), "run `make figures`"


def test_every_figure_has_command_machine_precision_and_date(results: dict[str, Any]) -> None:
    for name, entry in results["figures"].items():
        assert all(entry[key] for key in ("what", "command", "precision", "date")), name
        assert entry["machine"] in {*results["machines"], "not noted"}, name
        assert "value" in entry or len(entry["values"]) == len(entry.get("seeds", entry["values"])), name


def test_seeds_are_summed_up_by_mean_and_standard_error() -> None:
    entry = {"values": [0.783, 0.771, 0.767], "unit": "%", "digits": 1}
    assert figures.figure(entry) == "77.4 ± 0.5 %: 78.3, 77.1, 76.7"
    assert figures.figure({"values": [1.532], "unit": "nats"}) == "1.532 nats"


def test_the_page_says_on_which_machine_the_benchmarks_ran(results: dict[str, Any]) -> None:
    assert "On machine A." in figures.page(results)
    results["machine"]["cores"] = 1000
    page = figures.page(results)
    assert f"On machine {'ABCDEFGH'[len(results['machines'])]}." in page  # the first letter that is free
    assert "1000 cores" in page


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/figures.py", *words])
    figures.main()


@pytest.mark.slow
def test_a_recipe_is_trained_again_and_compared(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"python -m src.train --config {toy.RECIPE} --max_epochs 2 --accelerator cpu --seed_everything 1"
    entry = {"command": command, "metric": "test/acc", "seeds": [1, 2], "values": [0.123, 0.456], "unit": "%"}
    results["figures"] = {"toy": {**entry, "digits": 1, "date": "2026-11-27", "machine": "A"}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    page = figures.PAGE.read_text(encoding="utf-8")
    run(monkeypatch, "--results", str(path), "--rerun", "toy")
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines() if "toy" in line]
    assert [line[:7] for line in lines] == [
        ["toy", "1", "test/acc", "12.3", "2026-11-27", "A", "100.0"],
        ["toy", "2", "test/acc", "45.6", "2026-11-27", "A", "100.0"],
    ]
    assert figures.PAGE.read_text(encoding="utf-8") == page


def test_a_name_without_a_recipe_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--rerun", "kills")
    assert stop.value.code == 2
    assert "--rerun kills: no such recipe; give default, mnist_fast, mnist_best" in capsys.readouterr().err
