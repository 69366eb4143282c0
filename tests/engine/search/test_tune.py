"""Searches, as a user meets them."""

import logging
import math
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from src.engine.cli.command import run_command
from src.engine.runs.run_record import read_metrics
from src.engine.search.trials import Pruning, _retry_broken_trials, run_trials
from src.engine.search.tuning import tune
from src.engine.system.errors import InputError
from tests.conftest import Run, program, write
from tests.engine.search.studies import opened, run, search, trials, words
from tests.toy import RECIPE

NETS = ["tests.toy.ToyMLP", "tests.toy.ToyNet"]


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """None: a run that is repeated has all in its own `best.yaml`."""
    return ()


@pytest.mark.slow
def test_a_search_finds_a_best_run_that_can_be_repeated(
    tmp_path: Path, train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {*threading.enumerate()}  # other tests may have left some
    assert run(tmp_path) == 0
    said = capsys.readouterr()
    assert "3 complete" in said.out
    assert said.err.count("val/acc") >= 3
    assert not [one for one in {*threading.enumerate()} - before if "WriterThread" in type(one).__name__]
    folder = tmp_path / "logs" / "own"
    ended = trials(tmp_path)
    assert [trial.number for trial in ended] == [0, 1, 2]
    assert len({trial.user_attrs["run"] for trial in ended}) == 3
    best = max(ended, key=lambda trial: trial.value)
    saved = yaml.safe_load((folder / "best.yaml").read_text())
    assert saved["optimizer"]["init_args"]["lr"] == best.params["optimizer.lr"]
    # What repeats it is not as quiet as a trial.
    assert {saved["trainer"].get(name) for name in ("enable_progress_bar", "enable_model_summary")} == {None}
    again: Run = train("fit", "--config", str(folder / "best.yaml"))
    assert again.metrics["val/acc"] == best.value
    page = (folder / "study.html").read_text()
    assert "Plotly.newPlot" in page
    assert not re.findall(r"<script[^>]*src=", page)
    # Every trial is on the page of hyperparameters.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for trial in ended:
        events = EventAccumulator(trial.user_attrs["run"])
        events.Reload()
        assert any(name.startswith("_hparams_") for name in events.PluginTagToContent("hparams"))
    # A study that has enough trials is only reported; with more wanted, it goes on.
    assert run(tmp_path) == 0
    assert len(trials(tmp_path)) == 3
    assert run(tmp_path, "--n_trials", "4") == 0
    assert len(trials(tmp_path)) == 4
    assert sorted(path.name for path in folder.glob("trials/*")) == [f"version_{number}" for number in range(4)]
    assert again.folder == folder.with_name("own-best") / "version_0"


@pytest.mark.slow
def test_a_separate_process_searches(tmp_path: Path) -> None:
    given = words(tmp_path, n_trials=1)
    done = program(*given, cwd=tmp_path, module="src.tune", REAL_INTERPRETER="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 complete" in done.stdout
    assert "deprecated" not in done.stderr
    assert (tmp_path / "logs" / "own" / "best.yaml").is_file()


@pytest.mark.slow
def test_no_trial_is_the_newest_run(tmp_path: Path, train: Any) -> None:
    older: Run = train("fit", f"--config={RECIPE}", "--max_epochs=1")
    search(tmp_path, n_trials=1)
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)  # a search is quiet
    assert f"test of run {older.folder}, best.ckpt" in train("test").messages
    with pytest.raises(InputError, match="no unfinished run"):
        train("fit", f"--config={RECIPE}", "--name=own", "--ckpt_path=last")


@pytest.mark.slow
def test_a_search_and_the_runs_of_a_recipe_never_share_a_folder(tmp_path: Path, train: Any) -> None:
    train("fit", f"--config={RECIPE}", "--max_epochs=1", "--name=own")
    with pytest.raises(InputError, match=r"own holds runs of src.train: give another name, as in --name own-search"):
        search(tmp_path)
    search(tmp_path, "--name=other", n_trials=1)
    with pytest.raises(InputError, match=r"other holds a search: give another name, as in --name other-run"):
        train("fit", f"--config={RECIPE}", "--name=other")


@pytest.mark.slow
def test_a_metric_that_does_not_select_the_checkpoint_is_that_of_the_best_checkpoint(tmp_path: Path) -> None:
    options = {"model.net": NETS[0], "trainer.max_epochs": 3, "checkpoint.mode": "min"}  # the first epoch is the best
    (trial,) = search(tmp_path, options=options, metric="val/loss", direction="minimize", n_trials=1)
    folder = Path(trial.user_attrs["run"])
    saved = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["record"]["metrics"]
    assert trial.value == saved["val/loss"]
    assert trial.value == read_metrics(folder)["val/loss"]


@pytest.mark.slow
def test_networks_are_chosen_and_what_goes_with_them_only(tmp_path: Path) -> None:
    space = {
        "model.net": {"categorical": NETS},
        "model.net.hidden": {"int": [4, 8], "when": {"model.net": NETS[0]}},
        "model.net.width": {"int": [2, 4], "when": {"model.net": [NETS[1]]}},
    }
    options = {"trainer.max_epochs": 1}
    ended = search(tmp_path, "--sampler", "RandomSampler", space=space, options=options, n_trials=4)
    assert [trial.state.name for trial in ended] == ["COMPLETE"] * 4
    own = {NETS[0]: "model.net.hidden", NETS[1]: "model.net.width"}
    assert all(set(trial.params) == {"model.net", own[trial.params["model.net"]]} for trial in ended)
    assert {trial.params["model.net"] for trial in ended} == set(NETS)


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    space = {"data.batch_size": {"categorical": [64, 0, 100]}}
    assert run(tmp_path, "--sampler", "GridSampler", space=space, n_trials=3) == 0
    ended = trials(tmp_path)
    assert sorted(trial.state.name for trial in ended) == ["COMPLETE", "COMPLETE", "FAIL"]
    (failed,) = (trial for trial in ended if trial.state.name == "FAIL")
    assert failed.user_attrs["error"] == "InputError: batch_size 0 is too small: give at least 1"


@pytest.mark.slow
def test_a_search_in_which_every_trial_fails_fails(tmp_path: Path) -> None:
    assert run(tmp_path, metric="val/auc", direction="maximize", n_trials=3) == 1
    assert len(trials(tmp_path)) == 1  # the others would lack the metric too
    assert trials(tmp_path)[0].user_attrs["error"].startswith("InputError: metric val/auc is not logged")


@pytest.mark.slow
def test_a_pruned_trial_stops_in_its_epoch(tmp_path: Path) -> None:
    rates = [1e-2, 2e-2, 1e-7]  # two that learn, then one that does not
    options = {"model.net": NETS[0], "trainer.max_epochs": 3}
    found = opened(tmp_path, space={"optimizer.lr": {"categorical": rates}}, options=options, n_trials=3)
    for lr in rates:
        found.study.enqueue_trial({"optimizer.lr": lr})
    run_trials(found)
    seen = [(trial.params["optimizer.lr"], trial.state.name, trial.user_attrs["steps"]) for trial in trials(tmp_path)]
    assert seen == [(1e-2, "COMPLETE", 12), (2e-2, "COMPLETE", 12), (1e-7, "PRUNED", 4)]


@pytest.mark.parametrize(
    ("more", "changes", "message"),
    [
        ((), {"space": {"optimizer.rate": {"float": [0.1, 0.2]}}}, r"--optimizer\.rate: AdamW has no argument rate"),
        ((), {"space": {"optimizer": {"categorical": ["Adamw"]}}}, r"Adamw: no class of that name, did you mean AdamW"),
        ((), {"space": {"optimizer.lr": {"float": [0.2, 0.1]}}}, r"lr: \[0\.2, 0\.1\] is not a range of float"),
        ((), {"space": {"optimizer.lr": {"float": [0, 1], "log": True}}}, r"is not a range of float"),
        ((), {"space": {"optimizer.lr": {"normal": [0, 1]}}}, r"optimizer\.lr needs one of float, int, categorical"),
        ((), {"space": {"data.batch_size": {"int": [1, 2], "when": {"x": 1}}}}, r"x must be in space, before data"),
        ((), {"space": None}, r"space is missing"),
        ((), {"spaces": {}}, r"spaces is not known.*space"),
        ((), {"model": {}}, r"is a recipe: give it with --recipe, and with --config a search"),
        (("--sampler", "TPE"), {}, r"--sampler TPE: not one to use here.*TPESampler"),
        (("--pruner", "None"), {}, r"--pruner None: not one to use here"),
        (("--sampler", "GridSampler"), {}, r"every entry of space must be categorical"),
        (("--n_trials", "0"), {}, r"--n_trials 0 is too small"),
        (("--storage", "nosql://x"), {}, r"--storage nosql://x cannot be used"),
        ((), {"space": {"data.batch_size": {"int": [1, 8], "log": True, "step": 2}}}, r"is not a range of int: .*log"),
        ((), {"metric": "val/loss"}, r"direction is missing: give minimize or maximize for val/loss"),
        ((), {"direction": "max"}, r"direction max is not known: give minimize or maximize for val/acc"),
        (("--pruner", "ThresholdPruner"), {}, r"--pruner ThresholdPruner needs arguments, which a search cannot give"),
        (("--sampler", "PartialFixedSampler"), {}, r"--sampler PartialFixedSampler needs arguments"),
        (("--sampler", "CmaEsSampler"), {}, r"--sampler CmaEsSampler: not one to use here"),
        (("--timeout", "nan"), {}, r"--timeout nan: give seconds above 0"),
        (("--seed", "-1"), {}, r"--seed -1 is out of range: give 0 to 4294967295"),
        ((), {"n_trials": "many"}, r"n_trials \"many\": expected int"),
        ((), {"n_trials": -1}, r"n_trials -1 is too small: give at least 1"),
        (("--fast_dev_run", "true"), {}, r"--fast_dev_run: a trial needs its run folder"),
        ((), {"options": [1]}, r"options \[1\]: expected dict"),
        ((), {"sampler": 3}, r"sampler 3: expected str"),
        ((), {"space": {"data.batch_size": {"int": [8, 24], "step": 0}}}, r"is not a range of int: .step > 0"),
        ((), {"space": {"data.batch_size": {"int": [8, 24], "when": 3}}}, r"batch_size: when 3: give names and values"),
        ((), {"space": {"optimizer.lr": {"float": [0, float("inf")]}}}, r"\[0, inf\] is not a range of float"),
        (("--n_trails", "3"), {}, r"--n_trails: no such option, did you mean --n_trials\?"),
        ((), {"recipe": "toyy"}, r"own\.yaml: recipe: toyy: no such file"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_trial(
    tmp_path: Path, more: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path, *more, **changes)
    assert not list((tmp_path / "logs").rglob("version_*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.net": NETS[0], "data.batch_size": 0}, "batch_size 0 is too small: give at least 1"),
        ({"model.net": NETS[1], "model.net.width": 0}, "width 0 is too small for ToyNet: give at least 1"),
    ],
)
def test_a_value_that_a_class_refuses_is_one_line_before_the_first_trial(
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["src.tune", *words(tmp_path, options=options)])
    with pytest.raises(SystemExit) as stop:
        run_command(tune)
    assert stop.value.code == 2
    assert f"error: {message}\n" in capsys.readouterr().err
    assert not list((tmp_path / "logs").rglob("version_*"))


@pytest.mark.slow
def test_seeds_become_a_mean_with_its_deviation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = {"space": {"seed_everything": {"categorical": [1, 2]}}, "sampler": "GridSampler", "pruner": "NopPruner"}
    options = {"optimizer.lr": 1e-4, "trainer.max_epochs": 1}
    assert run(tmp_path, **seeds, options=options, metric="test/acc", direction="maximize", n_trials=2) == 0
    pattern = r"^test/acc: mean (\S+), standard deviation (\S+), 2 runs: (\S+), (\S+)$"
    (line,) = re.findall(pattern, capsys.readouterr().out, re.MULTILINE)
    values = torch.tensor([float(line[2]), float(line[3])])
    assert values[0] != values[1]
    assert float(line[0]) == pytest.approx(values.mean().item(), abs=1e-4)
    assert float(line[1]) == pytest.approx(values.std().item(), abs=1e-4)
    assert len({trial.params["seed_everything"] for trial in trials(tmp_path)}) == 2


FOLDS = {
    "options": {"data": "tests.engine.search.toys.FoldedData", "data.folds": 3, "trainer.max_epochs": 2},
    "space": {"data.fold": {"categorical": [1, 2, 3]}},
    "sampler": "GridSampler",
    "pruner": "NopPruner",
    "n_trials": 3,
}
MEAN = r"^(.*?)(\S+): mean (\S+), standard deviation (\S+), (\d+) runs: (.*)$"


@pytest.mark.slow
def test_folds_become_a_mean_with_its_deviation_for_every_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.engine.search.studies.TINY", ("--accelerator=cpu",))
    assert run(tmp_path, **FOLDS) == 0
    shown = capsys.readouterr().out
    assert "importance" not in shown
    found = {name: (mean, deviation, values) for _, name, mean, deviation, _, values in re.findall(MEAN, shown, re.M)}
    assert next(iter(found)) == "val/acc"
    assert set(found) == {"val/acc", "val/f1", "val/loss"}
    ended = trials(tmp_path)
    runs = [read_metrics(Path(trial.user_attrs["run"])) for trial in ended]
    for name, (mean, deviation, values) in found.items():
        numbers = torch.tensor([one[name] for one in runs], dtype=torch.float64)
        assert [float(value) for value in values.split(", ")] == pytest.approx(numbers.tolist(), abs=1e-4)
        assert float(mean) == pytest.approx(numbers.mean().item(), abs=1e-4)
        assert float(deviation) == pytest.approx(numbers.std().item(), abs=1e-4)
    assert len({one["val/loss"] for one in runs}) == 3
    assert not any(name.startswith("test") for one in runs for name in one)  # the test part is not looked at
    # A search that goes on with other folds would mix them.
    capsys.readouterr()
    changed = {**FOLDS, "options": {**FOLDS["options"], "data.folds": 4}}  # type: ignore[dict-item]
    with pytest.raises(InputError, match=r"own holds trials with options .*'data.folds': 3.*: give another --name"):
        run(tmp_path, **changed)
    changed = {**FOLDS, "space": {"data.fold": {"categorical": [1, 2]}}}
    with pytest.raises(InputError, match=r"own holds trials with data.fold .*\[1, 2, 3\].*, not .*\[1, 2\]"):
        run(tmp_path, **changed)


@pytest.mark.slow
def test_each_choice_of_other_settings_has_a_mean_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.engine.search.studies.TINY", ("--accelerator=cpu",))
    rates = {"optimizer.lr": {"categorical": [0.00001, 0.01]}}
    space = {**rates, "data.fold": {"categorical": [1, 2]}}
    assert run(tmp_path, **{**FOLDS, "space": space, "n_trials": 4}) == 0
    lines = [line for line in re.findall(MEAN, capsys.readouterr().out, re.M) if line[1] == "val/acc"]
    assert [line[0] for line in lines] == ["optimizer.lr 0.01, ", "optimizer.lr 1e-05, "]  # the best mean first
    assert [line[4] for line in lines] == ["2", "2"]


@pytest.mark.slow
def test_another_recipe_has_a_study_of_its_own(tmp_path: Path) -> None:
    other = write(tmp_path / "wide.yaml", Path(RECIPE).read_text().replace("width: 8", "width: 16"))
    options = {"trainer.max_epochs": 1}
    space = {"seed_everything": {"categorical": [1, 2]}}
    found = search(tmp_path, "--recipe", other, options=options, space=space, n_trials=1)
    (folder,) = (Path(trial.user_attrs["run"]) for trial in found)
    assert folder.parent == tmp_path / "logs" / "own_wide" / "trials"
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["net"]["init_args"]["width"] == 16
    with pytest.raises(InputError, match=r"^--recipe nowhere.yaml: no such file"):
        search(tmp_path, "--recipe", "nowhere.yaml")


def test_data_without_folds_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.fold: ToyData has no argument fold"):
        run(tmp_path, **{**FOLDS, "options": {"trainer.max_epochs": 1}})


@pytest.mark.slow
def test_a_trial_whose_process_died_before_its_run_began_is_not_lost(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    trial = opened(tmp_path).study.ask()
    trial.suggest_int("model.net.hidden", 4, 32)
    trial.suggest_float("optimizer.lr", 1e-4, 1e-1, log=True)
    trial.set_user_attr("process", f"{socket.gethostname()}:{dead.pid}")
    ended = search(tmp_path, n_trials=2)
    states = [one.state.name for one in ended]
    assert (states.count("FAIL"), states.count("COMPLETE")) == (1, 2)
    (again,) = (one for one in ended if one.user_attrs.get("again") == 0)
    assert again.params == trial.params


def test_a_trial_of_a_living_process_is_left_alone_also_when_its_run_has_ended(tmp_path: Path) -> None:
    found = opened(tmp_path)
    trial = found.study.ask()
    run_folder = tmp_path / "logs" / "own" / "trials" / "version_0"
    run_folder.mkdir()  # nobody holds its lock
    trial.set_user_attr("process", f"{socket.gethostname()}:{os.getppid()}")
    trial.set_user_attr("run", str(run_folder))
    _retry_broken_trials(found)
    assert [one.state.name for one in trials(tmp_path)] == ["RUNNING"]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["TPESampler", "RandomSampler"])
def test_a_seed_repeats_a_study_and_another_does_not(tmp_path: Path, sampler: str) -> None:
    drawn = []
    for name, seed, count in (("first", "1", 2), ("again", "1", 2), ("other", "2", 1)):
        ended = search(tmp_path, "--name", name, "--seed", seed, "--sampler", sampler, n_trials=count)
        drawn.append([trial.params for trial in ended])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0]


@pytest.mark.slow
def test_processes_of_one_study_do_not_draw_the_same(tmp_path: Path) -> None:
    first, second = opened(tmp_path, n_trials=1), opened(tmp_path, n_trials=2)
    run_trials(first)
    run_trials(second)
    first.spec["n_trials"] = 3
    run_trials(first)
    assert len({trial.params["optimizer.lr"] for trial in trials(tmp_path)}) == 3


@pytest.mark.slow
def test_a_trial_of_a_machine_that_is_no_longer_heard_of_is_tried_once_more(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    url = f"--storage=sqlite:///{file}"
    study = opened(tmp_path, url).study
    lost = study.ask()
    lost.suggest_int("model.net.hidden", 4, 32)
    lost.suggest_float("optimizer.lr", 1e-4, 1e-1, log=True)
    lost.set_user_attr("process", "another:1")
    with sqlite3.connect(file) as base:
        base.execute(
            "INSERT INTO trial_heartbeats (trial_id, heartbeat) SELECT trial_id, '2020-01-01 00:00:00' FROM trials"
        )
    search(tmp_path, url, n_trials=2)
    ended = study.get_trials()
    assert sorted(trial.state.name for trial in ended) == ["COMPLETE", "COMPLETE", "FAIL"]
    (again,) = (trial for trial in ended if trial.user_attrs.get("again") == 0)
    assert again.params == lost.params
    assert not (tmp_path / "logs" / "own" / "study.log").exists()


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"val_check_batch": 10, "check_val_every_n_epoch": 2}, [1, 2, 3]),  # validated after 2, 4 and 6 epochs
        ({"val_check_batch": math.inf, "check_val_every_n_epoch": 2}, [1, 2, 3]),  # a loader without a length
        ({"val_check_batch": 5, "check_val_every_n_epoch": None}, [4, 8, 12]),
    ],
)
def test_a_pruner_gets_the_number_of_validations(numbers: dict[str, Any], expected: list[int]) -> None:
    trial = SimpleNamespace(report=lambda _, number: reported.append(number), should_prune=lambda: True)
    reported: list[int] = []
    for epoch in (1, 3, 5):
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=10 * (epoch + 1) - 1))
        state = {"sanity_checking": False, "callback_metrics": {"val/acc": torch.tensor(0.5)}, "fit_loop": loop}
        state |= {"current_epoch": epoch, "global_step": 10, "estimated_stepping_batches": -1, "should_stop": False}
        run: Any = SimpleNamespace(**state, **numbers)
        Pruning(trial, "val/acc").on_validation_end(run, None)  # type: ignore[arg-type]
        assert run.should_stop  # the length of the run is not known
    assert reported == expected
