"""Searches, as a user meets them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from src import ROOT
from src.engine.cli.command import run_command
from src.engine.system.errors import InputError
from src.tune import tune
from tests.conftest import Run
from tests.engine.deploy.served import free_port

TINY = ("--data.source=sample", "--trainer.limit_train_batches=4", "--trainer.limit_val_batches=2", "--accelerator=cpu")


def spec(folder: Path, **changes: Any) -> str:
    """A small search as a file; None takes a key away."""
    tree: dict[str, Any] = {
        "recipe": "configs/default.yaml",
        "options": {"model.net": "MLP", "trainer.max_epochs": 1},
        "space": {"model.net.hidden": {"int": [4, 32]}, "optimizer.lr": {"float": [1e-4, 1e-1], "log": True}},
        "n_trials": 3,
    }
    tree = {key: value for key, value in (tree | changes).items() if value is not None}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def run(folder: Path, *words: str, **changes: Any) -> int:
    return tune(["--config", spec(folder, **changes), f"--trainer.default_root_dir={folder / 'logs'}", *TINY, *words])


def trials(folder: Path, name: str = "own") -> list[Any]:
    from optuna import load_study
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(folder / "logs" / name / "study.log")))
    found: list[Any] = load_study(study_name=name, storage=storage).trials
    return found


def test_a_search_finds_a_best_run_that_can_be_repeated(
    tmp_path: Path, train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path) == 0
    said = capsys.readouterr()
    assert "3 complete" in said.out
    assert said.err.count("val/acc") >= 3
    assert not [thread for thread in threading.enumerate() if "WriterThread" in type(thread).__name__]
    folder = tmp_path / "logs" / "own"
    ended = trials(tmp_path)
    assert [trial.number for trial in ended] == [0, 1, 2]
    assert len({trial.user_attrs["run"] for trial in ended}) == 3
    best = max(ended, key=lambda trial: trial.value)
    saved = yaml.safe_load((folder / "best.yaml").read_text())
    assert saved["optimizer"]["init_args"]["lr"] == best.params["optimizer.lr"]
    # What repeats it is not as quiet as a trial.
    assert {saved["trainer"].get(name) for name in ("enable_progress_bar", "enable_model_summary")} == {None}
    again: Run = train("fit", "--config", str(folder / "best.yaml"), sample=False)
    assert again.metrics["val/acc"] == best.value
    page = (folder / "study.html").read_text()
    assert "Plotly.newPlot" in page
    assert not re.findall(r"<script[^>]*src=", page)
    assert list((folder / "study").glob("events*"))
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
    assert sorted(path.name for path in folder.glob("version_*")) == [
        f"version_{number}" for number in range(5)
    ]  # and one that repeats the best


def test_networks_are_chosen_and_what_goes_with_them_only(tmp_path: Path) -> None:
    space = {
        "model.net": {"categorical": ["MLP", "CNN"]},
        "model.net.hidden": {"int": [4, 8], "when": {"model.net": "MLP"}},
        "model.net.width": {"int": [2, 4], "when": {"model.net": ["CNN"]}},
    }
    assert run(tmp_path, "--sampler", "RandomSampler", space=space, options={"trainer.max_epochs": 1}, n_trials=5) == 0
    seen = [set(trial.params) for trial in trials(tmp_path)]
    assert all(names in ({"model.net", "model.net.hidden"}, {"model.net", "model.net.width"}) for names in seen)
    assert len({trial.params["model.net"] for trial in trials(tmp_path)}) == 2


def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    space = {"data.batch_size": {"categorical": [64, 0, 100]}}
    assert run(tmp_path, "--sampler", "GridSampler", space=space, n_trials=3) == 0
    ended = trials(tmp_path)
    assert sorted(trial.state.name for trial in ended) == ["COMPLETE", "COMPLETE", "FAIL"]
    (failed,) = (trial for trial in ended if trial.state.name == "FAIL")
    assert failed.user_attrs["error"] == "InputError: batch_size 0 is too small: give at least 1"


def test_choices_that_a_study_cannot_change_are_the_error_of_their_trial(tmp_path: Path) -> None:
    assert run(tmp_path, space={"data.batch_size": {"categorical": [64, 100]}}, n_trials=1) == 0
    assert run(tmp_path, space={"data.batch_size": {"categorical": [64, 50]}}, n_trials=2) == 0
    error = trials(tmp_path)[1].user_attrs["error"]
    assert error.startswith("ValueError: CategoricalDistribution does not support dynamic value space")


def test_a_search_in_which_every_trial_fails_fails(tmp_path: Path) -> None:
    assert run(tmp_path, metric="val/auc", direction="maximize", n_trials=1) == 1
    assert trials(tmp_path)[0].user_attrs["error"].startswith("InputError: metric val/auc is not logged")


def test_a_pruned_trial_stops_in_its_epoch(tmp_path: Path) -> None:
    space = {"optimizer.lr": {"categorical": [1e-2, 2e-2, 3e-2, 5e-3, 1e-7, 2e-7, 3e-7, 4e-7]}}
    options = {"model.net": "MLP", "trainer.max_epochs": 6}
    words = ("--sampler", "GridSampler", "--pruner", "SuccessiveHalvingPruner")
    assert run(tmp_path, *words, space=space, options=options, n_trials=8) == 0
    states = {trial.params["optimizer.lr"]: trial for trial in trials(tmp_path)}
    assert {trial.user_attrs["steps"] for trial in states.values()} <= {4 * epoch for epoch in range(1, 7)}
    pruned = [trial for trial in states.values() if trial.state.name == "PRUNED"]
    assert all(trial.user_attrs["steps"] < 24 for trial in pruned)
    assert pruned


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        ((), {"space": {"optimizer.rate": {"float": [0.1, 0.2]}}}, r"--optimizer\.rate: AdamW has no argument rate"),
        ((), {"space": {"model.net": {"categorical": ["CNNN"]}}}, r"CNNN: no class of that name, did you mean CNN"),
        ((), {"space": {"optimizer.lr": {"float": [0.2, 0.1]}}}, r"optimizer\.lr: \[0\.2, 0\.1\] is no range of float"),
        ((), {"space": {"optimizer.lr": {"float": [0, 1], "log": True}}}, r"is no range of float"),
        ((), {"space": {"optimizer.lr": {"normal": [0, 1]}}}, r"optimizer\.lr needs one of float, int, categorical"),
        ((), {"space": {"data.batch_size": {"int": [1, 2], "when": {"x": 1}}}}, r"x must be in space, and before it"),
        ((), {"space": None}, r"space is missing"),
        ((), {"spaces": {}}, r"spaces is not known.*space"),
        (("--sampler", "TPE"), {}, r"--sampler TPE: no such sampler.*TPESampler"),
        (("--pruner", "None"), {}, r"--pruner None: no such pruner"),
        (("--sampler", "GridSampler"), {}, r"every entry of space must be categorical"),
        (("--n_trials", "0"), {}, r"--n_trials 0 is too small"),
        (("--storage", "nosql://x"), {}, r"--storage nosql://x cannot be used"),
        ((), {"space": {"data.batch_size": {"int": [1, 8], "log": True, "step": 2}}}, r"give log or step, not both"),
        ((), {"metric": "val/loss"}, r"direction is missing: give minimize or maximize for val/loss"),
        ((), {"direction": "max"}, r"direction max is not known: give minimize or maximize for val/acc"),
        (("--pruner", "ThresholdPruner"), {}, r"--pruner ThresholdPruner: no such pruner"),
        (("--sampler", "PartialFixedSampler"), {}, r"--sampler PartialFixedSampler: no such sampler"),
        (("--timeout", "nan"), {}, r"--timeout nan: give seconds above 0"),
        (("--seed", "-1"), {}, r"--seed -1 is out of range: give 0 to 4294967295"),
        ((), {"n_trials": "many"}, r"n_trials \"many\": expected int"),
        ((), {"n_trials": -1}, r"n_trials -1 is too small: give at least 1"),
        ((), {"options": [1]}, r"options \[1\]: expected dict"),
        ((), {"sampler": 3}, r"sampler 3: expected str"),
        ((), {"space": {"data.batch_size": {"int": [8, 24], "step": 0}}}, r"batch_size: step 0: give int above 0"),
        ((), {"space": {"data.batch_size": {"int": [8, 24], "when": 3}}}, r"batch_size: when 3: give names and values"),
        ((), {"space": {"optimizer.lr": {"float": [0, float("inf")]}}}, r"\[0, inf\] is no range of float"),
        (("--n_trails", "3"), {}, r"--n_trails: no such option, did you mean --n_trials\?"),
        ((), {"recipe": "mnist_fats"}, r"own\.yaml: recipe: mnist_fats: no such file"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_trial(
    tmp_path: Path, words: tuple[str, ...], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path, *words, **changes)
    assert not list((tmp_path / "logs").glob("*/version_*"))


def test_a_value_that_a_class_refuses_is_one_line_before_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", spec(tmp_path, options={"model.net": "MLP", "data.batch_size": 0})]
    monkeypatch.setattr(sys, "argv", ["src.tune", *words, f"--trainer.default_root_dir={tmp_path / 'logs'}", *TINY])
    with pytest.raises(SystemExit) as stop:
        run_command(tune)
    assert stop.value.code == 2
    assert "error: batch_size 0 is too small: give at least 1\n" in capsys.readouterr().err


def test_seeds_become_a_mean_with_its_deviation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "configs/tune/seeds.yaml", f"--trainer.default_root_dir={tmp_path / 'logs'}", *TINY]
    assert tune([*words, "--n_trials", "2", "--trainer.limit_test_batches=2", "--trainer.max_epochs=1"]) == 0
    (line,) = re.findall(r"mean (\S+), standard deviation (\S+) of 2: (\S+), (\S+)", capsys.readouterr().out)
    values = torch.tensor([float(line[2]), float(line[3])])
    assert float(line[0]) == pytest.approx(values.mean().item(), abs=1e-4)
    assert float(line[1]) == pytest.approx(values.std().item(), abs=1e-4)
    assert len({trial.params["seed_everything"] for trial in trials(tmp_path, "seeds")}) == 2


def test_the_search_of_the_readme_is_one(tmp_path: Path) -> None:
    words = ["--config", "configs/tune/mnist.yaml", f"--trainer.default_root_dir={tmp_path / 'logs'}", *TINY]
    assert tune([*words, "--n_trials", "1", "--trainer.max_epochs=1"]) == 0


def test_a_trial_whose_process_died_before_its_run_began_is_not_lost(tmp_path: Path) -> None:
    from src.engine.search.search import open_search
    from src.tune import _parse

    root = f"--trainer.default_root_dir={tmp_path / 'logs'}"
    opened = open_search(_parse(["--config", spec(tmp_path, n_trials=2), root, *TINY]))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    trial = opened.study.ask()
    trial.suggest_int("model.net.hidden", 4, 32)
    trial.suggest_float("optimizer.lr", 1e-4, 1e-1, log=True)
    trial.set_user_attr("process", f"{socket.gethostname()}:{dead.pid}")
    assert run(tmp_path, n_trials=2) == 0
    states = [one.state.name for one in trials(tmp_path)]
    assert (states.count("FAIL"), states.count("COMPLETE")) == (1, 2)
    (again,) = (one for one in trials(tmp_path) if one.user_attrs.get("again") == 0)
    assert again.params == trial.params


def test_a_trial_of_a_living_process_is_left_alone_also_when_its_run_has_ended(tmp_path: Path) -> None:
    from src.engine.search.search import _take_up_broken, open_search
    from src.tune import _parse

    root = f"--trainer.default_root_dir={tmp_path / 'logs'}"
    opened = open_search(_parse(["--config", spec(tmp_path), root, *TINY]))
    trial = opened.study.ask()
    run_folder = tmp_path / "logs" / "own" / "version_0"
    run_folder.mkdir()  # nobody holds its lock
    trial.set_user_attr("process", f"{socket.gethostname()}:{os.getpid()}")
    trial.set_user_attr("run", str(run_folder))
    _take_up_broken(opened)
    assert [one.state.name for one in trials(tmp_path)] == ["RUNNING"]


def start(folder: Path, *words: str, **changes: Any) -> "subprocess.Popen[str]":
    root = f"--trainer.default_root_dir={folder / 'logs'}"
    command = [sys.executable, "-m", "src.tune", "--config", spec(folder, **changes), root, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


LONG = {"options": {"model.net": "MLP", "trainer.max_epochs": 8, "save_every_n_steps": 5}, "n_trials": 2}


@pytest.mark.slow
def test_a_trial_that_is_killed_goes_on_once_from_its_checkpoint(tmp_path: Path) -> None:
    words = ("--data.source=sample", "--accelerator=cpu", "--pruner=NopPruner")
    process = start(tmp_path, *words, **LONG)
    end = time.monotonic() + 120
    while not list((tmp_path / "logs" / "own").glob("*/checkpoints/last.ckpt")) and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    again = start(tmp_path, *words, **LONG)
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0, said
    ended = trials(tmp_path)
    assert [trial.state.name for trial in ended].count("COMPLETE") == 2
    (broken,) = (trial for trial in ended if trial.state.name == "FAIL")
    (retried,) = (trial for trial in ended if "again" in trial.user_attrs)
    assert broken.user_attrs["error"] == "it was stopped or killed"
    assert retried.params == broken.params
    assert retried.user_attrs["run"] == broken.user_attrs["run"]
    whole = json.loads((Path(retried.user_attrs["run"]) / "metrics.json").read_text())
    assert "total_seconds" in whole


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "jobs"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, signum: int, jobs: int) -> None:
    words = ("--data.source=sample", "--accelerator=cpu", "--pruner=NopPruner")
    process = start(tmp_path, *words, f"--jobs={jobs}", **LONG)
    end = time.monotonic() + 120
    while not list((tmp_path / "logs" / "own").glob("*/checkpoints/last.ckpt")) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signum)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, said
    assert said.count("go on with: python -m src.tune") == 1
    assert "COMPLETE" not in [trial.state.name for trial in trials(tmp_path)]
    assert "Traceback" not in said
    again = start(tmp_path, *words, **LONG)
    said, _ = again.communicate(timeout=200)
    assert [trial.state.name for trial in trials(tmp_path)].count("COMPLETE") == 2, said


@pytest.mark.parametrize("sampler", ["TPESampler", pytest.param("RandomSampler", marks=pytest.mark.slow)])
def test_a_seed_repeats_a_study_and_another_does_not(tmp_path: Path, sampler: str) -> None:
    drawn = []
    for name, seed in (("first", "1"), ("again", "1"), ("other", "2")):
        assert run(tmp_path, "--name", name, "--seed", seed, "--sampler", sampler, n_trials=2) == 0
        drawn.append([trial.params for trial in trials(tmp_path, name)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_processes_of_one_study_do_not_draw_the_same(tmp_path: Path) -> None:
    from src.engine.search.search import _take_trials, open_search
    from src.tune import _parse

    words = ["--config", spec(tmp_path, n_trials=2), f"--trainer.default_root_dir={tmp_path / 'logs'}", *TINY]
    first, second = open_search(_parse(words)), open_search(_parse(words))
    _take_trials(first, None)
    second.spec["n_trials"] = 3
    _take_trials(second, None)
    assert len({trial.params["optimizer.lr"] for trial in trials(tmp_path)}) == 3


def test_a_trial_of_a_machine_that_is_no_longer_heard_of_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from src.engine.search import search
    from src.tune import _parse

    monkeypatch.setattr(search, "HEARTBEAT", 1)
    url = f"--storage=sqlite:///{tmp_path / 'study.db'}"
    root = f"--trainer.default_root_dir={tmp_path / 'logs'}"
    opened = search.open_search(_parse(["--config", spec(tmp_path, n_trials=2), root, url, *TINY]))
    lost = opened.study.ask()
    lost.suggest_int("model.net.hidden", 4, 32)
    lost.suggest_float("optimizer.lr", 1e-4, 1e-1, log=True)
    lost.set_user_attr("process", "another:1")
    opened.study._storage.record_heartbeat(lost._trial_id)  # type: ignore[attr-defined]
    time.sleep(3)
    assert run(tmp_path, url, n_trials=2) == 0
    ended = opened.study.get_trials()
    assert sorted(trial.state.name for trial in ended) == ["COMPLETE", "COMPLETE", "FAIL"]
    (again,) = (trial for trial in ended if trial.user_attrs.get("again") == 0)
    assert again.params == lost.params
    assert not (tmp_path / "logs" / "own" / "study.log").exists()


@pytest.fixture
def data_base() -> Iterator[str]:
    """The URL of a PostgreSQL of this test's own."""
    programs = [
        Path(path) for path in (shutil.which("initdb"), *Path("/").glob("usr/lib/postgresql/*/bin/initdb")) if path
    ]
    if not programs:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    # It refuses to be run by root.
    user = {"user": "postgres"} if os.geteuid() == 0 else {}
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, "postgres")
        data, bin_dir = Path(folder) / "data", programs[-1].parent
        run_it: Any = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder, **user}
        subprocess.run([bin_dir / "initdb", "-D", data, "-U", "postgres", "-A", "trust"], **run_it)
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        control = [bin_dir / "pg_ctl", "-D", data, "-w"]
        subprocess.run([*control, "-o", options, "-l", Path(folder) / "log", "start"], **run_it)
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        subprocess.run([*control, "-m", "immediate", "stop"], **run_it)


@pytest.mark.slow
def test_two_machines_share_a_study_in_postgresql(tmp_path: Path, data_base: str) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    words = (*TINY, f"--storage={data_base}", "--name=shared", "--pruner=NopPruner")
    processes = [start(folder, *words, n_trials=12) for folder in folders]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    from optuna import load_study

    ended = load_study(study_name="shared", storage=data_base).trials
    assert {trial.state.name for trial in ended} == {"COMPLETE"}
    assert len(ended) in (12, 13)  # both may ask for the last one at once
    assert len({tuple(trial.params.items()) for trial in ended}) == len(ended)
    runs = {trial.user_attrs["run"] for trial in ended}
    assert runs == {str(path) for folder in folders for path in (folder / "logs" / "shared").glob("version_*")}
    assert all(any(Path(path).is_relative_to(folder) for path in runs) for folder in folders), "one did nothing"


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path: Path) -> None:
    process = start(tmp_path, *TINY, "--jobs=2", "--pruner=NopPruner", n_trials=8)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    ended = trials(tmp_path)
    assert [trial.state.name for trial in ended] == ["COMPLETE"] * 8
    assert len({trial.user_attrs["run"] for trial in ended}) == 8
    assert "8 complete" in said
