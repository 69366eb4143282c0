"""Searches that are killed, told to stop, or shared by several processes and machines."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from screenshots import free_port

from src.engine.search import tuning
from src.engine.search.tuning import _stop_without_parent, gpu_of
from src.engine.system.errors import InputError
from src.engine.system.interruption import SIGNALS
from tests.engine.search.studies import opened, search, start, trials


def paced(folder: Path, max_epochs: int) -> dict[str, Any]:
    """A search whose steps take their time until `go_on`."""
    brake = folder / "brake"
    brake.touch()
    net = {"model.net": "tests.engine.search.toys.PacedNet", "model.net.brake": str(brake)}
    space = {"model.net.width": {"int": [2, 8]}, "optimizer.lr": {"float": [1e-4, 1e-1], "log": True}}
    return {"options": {**net, "trainer.max_epochs": max_epochs, "save_every_n_steps": 2}, "space": space}


def go_on(folder: Path) -> None:
    (folder / "brake").unlink()


def wait_for_a_checkpoint(folder: Path) -> None:
    end = time.monotonic() + 120
    while not list((folder / "logs" / "own").glob("trials/*/checkpoints/last.ckpt")):
        assert time.monotonic() < end, "no checkpoint was saved"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_trial_that_is_killed_goes_on_once_from_its_checkpoint(tmp_path: Path) -> None:
    changes = {**paced(tmp_path, max_epochs=3), "n_trials": 2, "pruner": "NopPruner"}
    process = start(tmp_path, **changes)
    wait_for_a_checkpoint(tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    go_on(tmp_path)
    ended = search(tmp_path, **changes)
    assert [trial.state.name for trial in ended].count("COMPLETE") == 2
    (broken,) = (trial for trial in ended if trial.state.name == "FAIL")
    (retried,) = (trial for trial in ended if "again" in trial.user_attrs)
    assert retried.params == broken.params
    assert retried.user_attrs["run"] == broken.user_attrs["run"]
    whole = json.loads((Path(retried.user_attrs["run"]) / "metrics.json").read_text())
    assert "total_seconds" in whole


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "jobs"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, signum: int, jobs: int) -> None:
    changes = {**paced(tmp_path, max_epochs=3), "n_trials": 2, "pruner": "NopPruner"}
    process = start(tmp_path, f"--jobs={jobs}", **changes)
    wait_for_a_checkpoint(tmp_path)
    process.send_signal(signum)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, said
    assert said.count("continue with: python -m src.tune") == 1
    assert "COMPLETE" not in [trial.state.name for trial in trials(tmp_path)]
    assert "Traceback" not in said
    go_on(tmp_path)
    assert [trial.state.name for trial in search(tmp_path, **changes)].count("COMPLETE") == 2


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path: Path) -> None:
    process = start(tmp_path, "--jobs=2", "--pruner=NopPruner", **paced(tmp_path, max_epochs=1), n_trials=4)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    ended = trials(tmp_path)
    assert [trial.state.name for trial in ended] == ["COMPLETE"] * 4
    assert len({trial.user_attrs["run"] for trial in ended}) == 4
    assert len({trial.user_attrs["process"] for trial in ended}) == 2
    assert "4 complete" in said


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
        subprocess.run([bin_dir / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N"], **run_it)
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        control = [bin_dir / "pg_ctl", "-D", data, "-w"]
        subprocess.run([*control, "-o", options, "-l", Path(folder) / "log", "start"], **run_it)
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        subprocess.run([*control, "-m", "immediate", "stop"], **run_it)


@pytest.mark.slow
def test_two_machines_share_a_study_in_postgresql(tmp_path: Path, data_base: str) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    processes = []
    slowly = paced(tmp_path, max_epochs=1)
    for folder in folders:
        folder.mkdir()
        more = (f"--storage={data_base}", "--name=shared", "--pruner=NopPruner")
        processes.append(start(folder, *more, **slowly, n_trials=4))
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    from optuna import load_study

    ended = load_study(study_name="shared", storage=data_base).trials
    assert {trial.state.name for trial in ended} == {"COMPLETE"}
    assert len(ended) in (4, 5)  # both may ask for the last one at once
    assert len({tuple(trial.params.items()) for trial in ended}) == len(ended)
    runs = {trial.user_attrs["run"] for trial in ended}
    assert runs == {
        str(path) for folder in folders for path in (folder / "logs" / "shared" / "trials").glob("version_*")
    }
    assert all(any(Path(path).is_relative_to(folder) for path in runs) for folder in folders), "one did nothing"


def test_a_trial_of_an_earlier_process_with_this_ones_number_is_not_lost(tmp_path: Path) -> None:
    trial = opened(tmp_path).study.ask()
    trial.suggest_int("model.net.hidden", 4, 32)
    trial.suggest_float("optimizer.lr", 1e-4, 1e-1, log=True)
    trial.set_user_attr("process", f"{socket.gethostname()}:{os.getpid()}")  # as in a container that is started again
    states = [one.state.name for one in search(tmp_path, n_trials=1)]
    assert states == ["FAIL", "COMPLETE"]


@pytest.mark.slow
def test_a_search_that_goes_on_compares_by_the_same_metric_and_direction(tmp_path: Path) -> None:
    given: dict[str, Any] = {"metric": "val/acc", "direction": "maximize"}
    search(tmp_path, n_trials=1, **given)
    for changes, message in (
        ({"metric": "val/loss", "direction": "minimize"}, "holds trials with metric val/acc, not val/loss"),
        ({"metric": "val/acc", "direction": "minimize"}, "holds trials with direction maximize, not minimize"),
    ):
        with pytest.raises(InputError, match=f"{message}: give another --name"):
            search(tmp_path, n_trials=2, **changes)
    assert len(search(tmp_path, n_trials=2, **given)) == 2


@pytest.mark.parametrize(
    ("given", "count", "taken"),
    [(None, 2, ["0", "1", "0"]), ("3,5", 8, ["3", "5", "3"]), (None, 0, [None] * 3), ("", 0, [None] * 3)],
    ids=str,
)
def test_processes_take_the_gpus_in_turn(
    given: str | None, count: int, taken: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert [gpu_of(number).get("CUDA_VISIBLE_DEVICES") for number in range(3)] == taken


def test_a_worker_whose_search_is_gone_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    parents, sent = iter([7, 7, 1]), []
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "kill", lambda *given: sent.append(given))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    _stop_without_parent(7)
    assert sent == [(os.getpid(), signal.SIGTERM)]


@pytest.mark.parametrize(
    ("first", "words", "shares"),
    [
        (["--trainer.devices=1"], [], True),
        (["--trainer.devices=1"], ["--devices=1"], True),  # one, whichever it is
        (["--trainer.devices=1"], ["--devices=[1]"], False),
        ([], [], False),  # the recipe names one
    ],
    ids=str,
)
def test_processes_of_a_search_that_names_its_gpu_keep_it(
    first: list[str], words: list[str], shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(spec={"first": first, "options": {}})
    monkeypatch.setattr("src.engine.search.search.open_search", lambda _: found)
    monkeypatch.setattr("src.engine.search.trials.print_progress", lambda *_: None)
    monkeypatch.setattr("src.engine.search.search_report.finish", lambda *_: 0)
    monkeypatch.setattr(tuning, "gpu_of", lambda number: {"CUDA_VISIBLE_DEVICES": str(number)})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen: list[str | None] = []

    def start(*_: object, env: dict[str, str], **__: object) -> Any:
        seen.append(env.get("CUDA_VISIBLE_DEVICES"))
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(subprocess, "Popen", start)
    handlers = [signal.getsignal(one) for one in SIGNALS]
    try:
        assert tuning.tune(["--config=configs/tune/seeds.yaml", "--jobs=2", *words]) == 0
    finally:
        for one, handler in zip(SIGNALS, handlers, strict=True):
            signal.signal(one, handler)
    assert seen == (["0", "1"] if shares else [None, None])


@pytest.mark.parametrize(("needs", "code"), [(True, 1), (False, 0)])
def test_killed_processes_are_said_and_make_a_study_unfinished(
    needs: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = SimpleNamespace(get_trials=lambda **_: [])
    found = SimpleNamespace(spec={"first": [], "options": {}}, study=study, is_broken=False)
    monkeypatch.setattr("src.engine.search.search.open_search", lambda _: found)
    monkeypatch.setattr("src.engine.search.trials.print_progress", lambda *_: None)
    monkeypatch.setattr("src.engine.search.trials.needs_more", lambda _: needs)
    monkeypatch.setattr("src.engine.search.search_report.finish", lambda one, _: int(one.is_broken))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: SimpleNamespace(wait=lambda: -9))
    handlers = [signal.getsignal(one) for one in SIGNALS]
    try:
        assert tuning.tune(["--config=configs/tune/seeds.yaml", "--jobs=2"]) == code
    finally:
        for one, handler in zip(SIGNALS, handlers, strict=True):
            signal.signal(one, handler)
    assert "a process was killed, perhaps for lack of memory: give fewer --jobs" in capsys.readouterr().err
