"""Searches that go on: with their own runs, with the same space, in the folder that is asked for."""

import errno
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from filelock import FileLock
from optuna.distributions import FloatDistribution, IntDistribution

from src.engine.search import search as search_module
from src.engine.search import trials as trials_module
from src.engine.search.search import build_run, open_search, queue_again
from src.engine.search.search_report import finish
from src.engine.search.space import check_spec, values_with
from src.engine.search.trials import _final_metric, _print_trial, _run_trial, run_trials
from src.engine.search.tuning import _parse
from src.engine.system.errors import InputError
from tests.conftest import write
from tests.engine.search.studies import TINY, opened, search, spec, words


@pytest.mark.parametrize("kept", ["seed_everything: 1\n", "seed_everything: 2\n"])
def test_a_trial_goes_on_with_its_own_run_and_not_with_another_in_that_folder(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    write(run / "config.yaml", "seed_everything: 1\n")
    write(run / "checkpoints" / "last.ckpt", "")
    found = opened(tmp_path)
    stopped = found.study.ask()
    stopped.set_user_attr("run", str(run))
    stopped.set_user_attr("config", kept)
    queue_again(found.study, found.study.trials[0], is_stopped=True)
    asked: list[str] = []

    def build(*given: Any, **_: Any) -> None:
        asked.append(given[3])
        raise RuntimeError

    monkeypatch.setattr(trials_module, "build_run", build)
    lock = FileLock(tmp_path / "lock")
    lock.acquire()
    with pytest.raises(RuntimeError):
        _run_trial(found, lock, found.study.ask())
    assert asked == [str(run) if kept == "seed_everything: 1\n" else ""]


@pytest.mark.slow
def test_a_grid_does_not_go_on_with_more_entries(tmp_path: Path) -> None:
    rates = {"space": {"optimizer.lr": {"categorical": [0.1, 0.01]}}, "sampler": "GridSampler", "n_trials": 1}
    assert len(search(tmp_path, **rates)) == 1
    rates["space"] |= {"model.net.hidden": {"categorical": [4, 8]}}  # type: ignore[operator]
    with pytest.raises(InputError, match=r"holds trials with model\.net\.hidden None, not .*: give another --name"):
        opened(tmp_path, **rates)


@pytest.mark.slow
def test_a_study_goes_on_with_the_same_options_and_a_grid_after_no_other_sampler(tmp_path: Path) -> None:
    rates = {"space": {"optimizer.lr": {"categorical": [0.1, 0.01]}}, "n_trials": 1}
    assert len(search(tmp_path, "--sampler=RandomSampler", "--trainer.limit_train_batches=2", **rates)) == 1
    with pytest.raises(InputError, match=r"holds trials with trainer\.limit_train_batches .*: give another --name"):
        opened(tmp_path, **rates)
    with pytest.raises(InputError, match=r"holds trials with options .*: give another --name"):
        opened(tmp_path, "--trainer.limit_train_batches=2", options={}, **rates)
    with pytest.raises(InputError, match="holds trials of another sampler"):
        opened(tmp_path, "--sampler=GridSampler", "--trainer.limit_train_batches=2", **rates)


@pytest.mark.slow
def test_importances_are_printed_from_twenty_trials_on_largest_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = opened(tmp_path)
    kinds: Any = {"model.net.hidden": IntDistribution(4, 32), "optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True)}
    for number in range(20):
        assert finish(found, 0) == int(number == 0)
        assert "\nimportance " not in capsys.readouterr().out
        values = {"model.net.hidden": 4 + number * 7 % 20, "optimizer.lr": 1e-4 * 1.4**number}
        more = {"user_attrs": {"config": "trainer: {}"}, "distributions": kinds}
        found.study.add_trial(optuna.trial.create_trial(params=values, value=number / 20, **more))
    assert finish(found, 0) == 0
    lines = re.findall(r"^importance (\S+) (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in lines] == ["optimizer.lr", "model.net.hidden"]
    assert float(lines[0][1]) > float(lines[1][1])


def test_options_that_say_where_may_differ(tmp_path: Path) -> None:
    space = {"space": {"optimizer.lr": {"float": [0.1, 0.2]}}}
    study = opened(tmp_path, options={"trainer.max_epochs": 1, "data.num_workers": 0}, **space).study
    before = json.loads(study.user_attrs["same"])
    study.set_user_attr("same", json.dumps({**before, "options": {**before["options"], "data.num_workers": 0}}))
    opened(tmp_path, options={"trainer.max_epochs": 1, "data.num_workers": 1}, **space)


def test_trials_keep_their_checkpoints_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--checkpoint\.dirpath .*: each trial keeps its checkpoints"):
        opened(tmp_path, f"--checkpoint.dirpath={tmp_path / 'all'}")


def test_a_line_says_that_a_trial_was_pruned_and_that_a_metric_is_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found: Any = SimpleNamespace(metric="val/acc")
    pruned: Any = optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, value=0.9)
    _print_trial(found, None, pruned)  # type: ignore[arg-type]
    assert capsys.readouterr().err == "trial -1 pruned: val/acc 0.9000 ()\n"
    (tmp_path / "metrics.json").write_text('{"val/acc": null}')
    with pytest.raises(InputError, match="val/acc is NaN or infinite"):
        _final_metric(found, tmp_path)


@pytest.mark.slow
def test_entries_that_only_fit_together_are_checked_together(tmp_path: Path) -> None:
    space = {"optimizer": {"categorical": ["SGD", "RMSprop"]}, "optimizer.momentum": {"float": [0.0, 0.9]}}
    open_search(_parse(words(tmp_path, space=space)), probes=True)
    with pytest.raises(InputError, match=r"optimizer\.mass"):
        open_search(_parse(words(tmp_path, space={**space, "optimizer.mass": {"float": [0.0, 0.9]}})), probes=True)


@pytest.mark.slow
def test_any_seed_that_is_taken_runs(tmp_path: Path) -> None:
    assert [one.state.name for one in search(tmp_path, f"--seed={2**32 - 1}", n_trials=1)] == ["COMPLETE"]


@pytest.mark.slow
def test_the_folder_is_that_of_the_search_or_the_recipe_and_must_be_one(tmp_path: Path) -> None:
    own = {"model.net": "tests.toy.ToyMLP", "trainer.default_root_dir": str(tmp_path / "own")}
    found = open_search(_parse(["--config", spec(tmp_path, options=own), *TINY]), probes=False)
    assert found.folder == tmp_path / "own" / "own"
    write(tmp_path / "file", "")
    with pytest.raises(InputError, match=r"cannot be written \(.*\): give --trainer\.default_root_dir"):
        opened(tmp_path, f"--trainer.default_root_dir={tmp_path / 'file'}")


def test_retries_are_refused_and_a_flag_without_a_value_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^--retries 2: a trial keeps its learning rate: give --retries 0"):
        opened(tmp_path, "--retries=2")
    options = _parse(words(tmp_path, "--compile"))
    assert options.more[-1] == ("--compile", "true")
    given: list[str] = []
    monkeypatch.setattr(search_module, "StarterCLI", lambda found, _: given.extend(found))
    own = {"recipe": "a.yaml", "first": [], "more": options.more, "options": {"compile": True}}
    build_run(own, {}, tmp_path)
    assert [one for one in given if one.startswith("--compile")] == ["--compile"] * 2


@pytest.mark.slow
def test_entries_that_depend_on_others_are_checked_too(tmp_path: Path) -> None:
    nets = ["tests.toy.ToyMLP", "tests.toy.ToyNet"]
    space = {"model.net": {"categorical": nets}, "model.net.widht": {"int": [2, 4], "when": {"model.net": nets[1]}}}
    with pytest.raises(InputError, match="widht"):
        open_search(_parse(words(tmp_path, space=space, options=None)), probes=True)
    space["model.net.width"] = space.pop("model.net.widht")
    assert open_search(_parse(words(tmp_path, space=space, options=None)), probes=True)
    space["model.net.width"] = {"int": [2, 4], "when": {"model.net": "ToyNet"}}
    with pytest.raises(InputError, match=r"model.net.width: when model.net is 'ToyNet', which is not among .*ToyMLP"):
        opened(tmp_path, space=space)


def test_an_entry_is_checked_with_those_that_apply_with_it() -> None:
    space = {"a": {"categorical": [1, 2, 3]}, "b": {"int": [4, 5], "when": {"a": [2, 3]}}, "c": {"float": [0.1, 0.2]}}
    space |= {"d": {"int": [6, 7], "when": {"b": 5}}, "e": {"int": [8, 9], "when": {"a": 2}}}
    assert values_with(space, "b") == {"a": 2, "b": 4, "c": 0.1, "e": 8}
    assert values_with(space, "d", alone=True) == {"a": 2, "b": 5, "d": 6}
    assert values_with(space, "d") == {"a": 2, "b": 5, "c": 0.1, "d": 6, "e": 8}
    for when, problem in (({"x": 1}, "x must be in space, before x"), ({"a": []}, "when a has no value")):
        with pytest.raises(InputError, match=problem):
            check_spec({"space": {"a": space["a"], "x": {"int": [1, 2], "when": when}}}, "own.yaml")


def test_the_report_of_a_search_without_repetitions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = opened(tmp_path)
    for value in (0.5, 0.6):
        trial = found.study.ask()
        trial.suggest_float("optimizer.lr", 1e-4, 1e-1, log=True)
        trial.set_user_attr("run", str(tmp_path))
        found.study.tell(trial, value)
    assert finish(found, 0) == 0
    assert "2 complete" in capsys.readouterr().out
    assert (found.folder / "study.html").is_file()


def test_a_study_whose_end_a_full_disk_has_cut_short_goes_on(tmp_path: Path) -> None:
    search(tmp_path, n_trials=1)
    (log,) = tmp_path.rglob("study.log")
    with log.open("ab") as file:
        file.write(b'{"op_code":8,"tr')
    assert [trial.state.name for trial in search(tmp_path, n_trials=2)] == ["COMPLETE", "COMPLETE"]
    assert len(opened(tmp_path, n_trials=2).study.get_trials()) == 2


def test_a_disk_that_is_full_ends_a_search_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append, left = search_module.Journal.append_logs, [12]

    def full(journal: Any, logs: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(journal, logs)

    monkeypatch.setattr(search_module.Journal, "append_logs", full)
    found = opened(tmp_path, n_trials=3)
    signum = run_trials(found)
    assert (found.is_broken, signum) == (True, 0)
    assert "cannot be written, the disk is full: free some space" in capsys.readouterr().err
    monkeypatch.undo()
    assert [trial.state.name for trial in search(tmp_path, n_trials=1)].count("COMPLETE") == 1
