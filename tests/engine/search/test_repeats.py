"""Searches over seeds, folds and grids, whose means are over all trials of the same settings."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml

from src.engine.runs.run_record import is_finished
from src.engine.runs.runs import lock_run
from src.engine.search import trials as trials_module
from src.engine.search.search_report import _choices, _means, _print_results, finish
from src.engine.search.space import check_same
from src.engine.search.trials import _is_gone, run_trials
from src.engine.system.errors import InputError, UnwritableError
from tests.conftest import write
from tests.engine.search.studies import opened, run, search
from tests.toy import RECIPE

SEEDS: dict[str, Any] = {"space": {"seed_everything": {"categorical": [1, 2]}}, "sampler": "GridSampler"}


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 1])
def test_a_broken_trial_of_a_grid_is_tried_again_also_as_the_last_one(tmp_path: Path, before: int) -> None:
    if before:
        search(tmp_path, **SEEDS, n_trials=before)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    trial = opened(tmp_path, **SEEDS, n_trials=2).study.ask()
    trial.suggest_categorical("seed_everything", [1, 2])
    trial.set_user_attr("process", f"{socket.gethostname()}:{dead.pid}")
    ended = search(tmp_path, **SEEDS, n_trials=2)
    assert sorted(one.state.name for one in ended) == ["COMPLETE", "COMPLETE", "FAIL"]
    assert {one.params["seed_everything"] for one in ended if one.state.name == "COMPLETE"} == {1, 2}


@pytest.mark.slow
def test_a_grid_runs_each_combination_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, **SEEDS, n_trials=5) == 0
    said = capsys.readouterr()
    assert "n_trials 5: the space has 2 combinations, each runs once\n" in said.err
    assert "2 complete" in said.out
    assert ", 2 runs: " in said.out


@pytest.mark.slow
def test_a_pruner_that_leaves_out_the_worst_is_refused_for_means(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^pruner MedianPruner stops the worst trials: the mean over seed_everything"):
        opened(tmp_path, "--pruner=MedianPruner", **SEEDS)
    assert type(opened(tmp_path, **SEEDS).study.pruner).__name__ == "NopPruner"


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["TPESampler", "RandomSampler"])
def test_a_sampler_that_repeats_trials_is_refused_for_means(tmp_path: Path, sampler: str) -> None:
    seeds = {"space": SEEDS["space"]}
    with pytest.raises(InputError, match=rf"^sampler {sampler} repeats some trials: the mean over seed_everything"):
        opened(tmp_path, f"--sampler={sampler}", **seeds)
    assert type(opened(tmp_path, **seeds).study.sampler).__bases__[0].__name__ == "GridSampler"


@pytest.mark.slow
def test_a_mean_needs_a_grid(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mean over seeds or folds: every entry of space must be categorical"):
        opened(tmp_path, space={"seed_everything": {"int": [1, 5]}})
    found = opened(tmp_path, **SEEDS)
    found.study.add_trial(optuna.trial.create_trial(value=0.5))  # as another sampler adds them
    with pytest.raises(InputError, match="holds trials of another sampler: give another --name"):
        opened(tmp_path, **SEEDS)


def test_a_trial_uses_the_device_that_its_recipe_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(trainer=SimpleNamespace(world_size=1), best=SimpleNamespace(monitor="val/acc", mode="max"))
    root = SimpleNamespace(default_root_dir=str(tmp_path))
    run.config = SimpleNamespace(retries=0, checkpoint=SimpleNamespace(dirpath=None), trainer=root)
    monkeypatch.setattr("src.engine.search.search.build_run", lambda *_, **__: run)
    monkeypatch.setattr("tests.engine.search.studies.TINY", ())
    tree = yaml.safe_load(Path(RECIPE).read_text())
    tree["trainer"]["devices"] = [1]
    recipe = write(tmp_path / "own_recipe.yaml", yaml.safe_dump(tree))
    assert opened(tmp_path, f"--recipe={recipe}").spec["first"] == []
    assert opened(tmp_path).spec["first"] == ["--trainer.devices=1"]
    assert opened(tmp_path, f"--recipe={recipe}", "--trainer.accelerator=gpu").spec["first"] == ["--trainer.devices=1"]


@pytest.mark.slow
def test_a_mean_counts_trials_of_the_same_values_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nets = ["tests.toy.ToyMLP", "tests.toy.ToyNet"]
    hidden = {"categorical": [4, 8], "when": {"model.net": nets[0]}}
    space = {"model.net": {"categorical": nets}, "model.net.hidden": hidden, **SEEDS["space"]}
    assert run(tmp_path, space=space, n_trials=8) == 0
    said = capsys.readouterr().out
    assert "8 complete" in said
    means = [line for line in said.splitlines() if "val/acc: mean" in line]
    assert sorted(line.partition(", val/acc:")[0] for line in means) == [
        "model.net tests.toy.ToyMLP, model.net.hidden 4",
        "model.net tests.toy.ToyMLP, model.net.hidden 8",
        "model.net tests.toy.ToyNet",
    ]
    assert all(", 2 runs: " in line for line in means)


@pytest.mark.slow
def test_a_trial_trains_in_one_process(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^a trial trains in one process, not in 2: give --devices 1"):
        opened(tmp_path, "--devices=2", "--strategy=ddp")
    options = {"model.net": "tests.toy.ToyMLP", "trainer.strategy": "ddp"}
    assert opened(tmp_path, options=options).study is not None


@pytest.mark.slow
def test_choices_that_a_study_cannot_change_are_refused(tmp_path: Path) -> None:
    search(tmp_path, space={"data.batch_size": {"categorical": [64, 100]}}, n_trials=1)
    for other in ({"categorical": [64, 50]}, {"int": [64, 100]}):
        with pytest.raises(
            InputError,
            match=r"trials with another type, log or other choices of data.batch_size of .*64, 100.*--name",
        ):
            opened(tmp_path, space={"data.batch_size": other})
    assert opened(tmp_path, space={"data.batch_size": {"categorical": [64, 100]}}).study.trials


@pytest.mark.slow
def test_a_trial_that_ctrl_c_stops_while_it_is_built_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(tmp_path, **SEEDS, n_trials=2)
    handlers = [signal.signal(one, lambda *_: None) for one in (signal.SIGINT, signal.SIGTERM)]
    try:
        with monkeypatch.context() as patch:
            patch.setattr(trials_module, "build_run", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
            for _ in range(3):  # however often
                assert run_trials(found) == signal.SIGINT
        assert [trial.state.name for trial in found.study.trials] == ["FAIL"] * 3 + ["WAITING"]
        assert run_trials(found) == 0
    finally:
        for signum, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(signum, handler)
    complete = [trial for trial in found.study.trials if trial.state.name == "COMPLETE"]
    assert {trial.params["seed_everything"] for trial in complete} == {1, 2}


def test_a_search_that_began_without_options_takes_none_later(tmp_path: Path) -> None:
    study = opened(tmp_path, **SEEDS).study
    check_same(study, "own", {}, tmp_path)
    with pytest.raises(InputError, match=r"holds trials with optimizer.lr None, not 0.1: give another --name"):
        check_same(study, "own", {"optimizer.lr": "0.1"}, tmp_path)


@pytest.mark.slow
def test_a_mean_is_over_trials_with_the_same_options(tmp_path: Path) -> None:
    opened(tmp_path, "--optimizer.lr=0.001", "--data.num_workers=0", **SEEDS)
    opened(tmp_path, "--optimizer.lr=0.001", "--devices=1", **SEEDS)
    with pytest.raises(InputError, match=r"holds trials with optimizer.lr .*0.001.*, not .*0.01"):
        opened(tmp_path, "--optimizer.lr=0.01", **SEEDS)


def test_the_metric_is_that_of_the_recipes_own_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.engine.search.studies.TINY", ("--accelerator=cpu",))
    own = {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val_acc", "mode": "max"}}
    tree = {
        "model": {"class_path": "tests.engine.cli.test_own_module.Own"},
        "data": {"class_path": "tests.engine.cli.lightning_basics.NumbersData"},
        "trainer": {"max_epochs": 1, "callbacks": [own]},
    }
    recipe = write(tmp_path / "own_recipe.yaml", yaml.safe_dump(tree))
    space = {"model.lr": {"float": [0.01, 0.1]}}
    found = opened(tmp_path, "--recipe", recipe, space=space, options=None)
    assert (found.metric, found.study.direction.name) == ("val_acc", "MAXIMIZE")


def test_an_option_cannot_set_what_is_searched_under_a_short_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--trainer.max_epochs: .*own.yaml searches it: remove it there"):
        opened(tmp_path, "--max_epochs=1", space={"max_epochs": {"int": [2, 8]}})


@pytest.mark.parametrize("option", ["--optimizer.lr=0.1", "--optimizer.init_args.lr=0.1"])
def test_an_option_cannot_set_what_is_searched(tmp_path: Path, option: str) -> None:
    with pytest.raises(InputError, match=r"^--optimizer.lr: .*own.yaml searches it: remove it there"):
        opened(tmp_path, option)


@pytest.mark.slow
def test_the_best_choice_has_the_best_mean_and_is_read_from_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"optimizer.lr": {"categorical": [0.1, 0.2]}, "data.fold": {"categorical": [1, 2]}}
    found = opened(tmp_path, space=space, options={"data": "tests.engine.search.toys.FoldedData"})
    kinds = {name: optuna.distributions.CategoricalDistribution(one["categorical"]) for name, one in space.items()}
    for rate, fold, value in ((0.1, 1, 0.99), (0.1, 2, 0.1), (0.2, 1, 0.8), (0.2, 2, 0.8)):
        tree = {"optimizer": {"init_args": {"lr": rate}}, "data": {"init_args": {"fold": fold}}, "trainer": {}}
        attributes = {"run": "of/another/machine", "config": yaml.safe_dump(tree), "metrics": {"val/acc": value}}
        options = {"params": {"optimizer.lr": rate, "data.fold": fold}, "distributions": kinds}
        found.study.add_trial(optuna.trial.create_trial(value=value, user_attrs=attributes, **options))
    _print_results(found)
    saved = yaml.safe_load((found.folder / "best.yaml").read_text())
    assert saved["optimizer"]["init_args"]["lr"] == 0.2
    assert "fold" not in saved["data"]["init_args"]
    said = capsys.readouterr().out
    assert "optimizer.lr 0.2, val/acc: mean 0.8000, standard deviation 0.0000, 2 runs" in said
    command = next(line for line in said.splitlines() if line.startswith("train the best choice: "))
    assert shlex.split(command)[-1] == str(found.folder / "best.yaml")


@pytest.mark.slow
def test_a_grid_goes_on_in_its_order_whatever_the_seed(tmp_path: Path) -> None:
    search(tmp_path, "--seed=0", **SEEDS, n_trials=1)
    ended = search(tmp_path, "--seed=7", **SEEDS, n_trials=2)
    assert {trial.params["seed_everything"] for trial in ended} == {1, 2}


def test_a_mean_is_over_trials_of_the_same_recipe(tmp_path: Path) -> None:
    recipe, text = tmp_path / "edited.yaml", Path(RECIPE).read_text()
    recipe.write_text(text)
    opened(tmp_path, f"--recipe={recipe}", **SEEDS)
    recipe.write_text(text.replace("lr: 1.0e-2", "lr: 3.0e-2").replace("log_every_n_steps: 5", "accelerator: cpu"))
    with pytest.raises(InputError, match=r"holds trials with optimizer.lr 0.01, not 0.03: give another --name"):
        opened(tmp_path, f"--recipe={recipe}", **SEEDS)


def trial_of(number: int, value: float, **params: Any) -> SimpleNamespace:
    return SimpleNamespace(number=number, value=value, params=params, user_attrs={"metrics": {"val/acc": value}})


def test_settings_with_which_a_seed_failed_come_after_those_without() -> None:
    space = {"seed_everything": {"categorical": [1, 2]}, "optimizer.lr": {"categorical": [0.1, 1.0]}}
    direction = optuna.study.StudyDirection.MAXIMIZE
    study = SimpleNamespace(direction=direction, user_attrs={})
    found: Any = SimpleNamespace(spec={"space": space, "n_trials": 4}, study=study, metric="val/acc")
    ended = [trial_of(0, 0.9, seed_everything=1, **{"optimizer.lr": 1.0})]
    ended += [trial_of(seed, 0.8, seed_everything=seed, **{"optimizer.lr": 0.1}) for seed in (1, 2)]
    choices = _choices(found, ended)
    assert [name for name, _ in choices] == ["optimizer.lr 0.1", "optimizer.lr 1.0"]
    lines = list(_means(found, choices))
    assert lines[0].endswith("val/acc: mean 0.8000, standard deviation 0.0000, 2 runs: 0.8000, 0.8000")
    assert lines[1].endswith("val/acc: mean 0.9000, 1 of 2 runs: 0.9000")


def test_settings_are_not_chosen_by_the_test_part(tmp_path: Path) -> None:
    space = {**SEEDS["space"], "optimizer.lr": {"categorical": [0.1, 0.01]}}
    with pytest.raises(InputError, match=r"metric test/acc would choose optimizer.lr by the test part: give a metric"):
        opened(tmp_path, space=space, metric="test/acc", direction="maximize")
    assert opened(tmp_path, **SEEDS, metric="test/acc", direction="maximize").metric == "test/acc"


def test_a_full_disk_stops_a_search_which_then_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise UnwritableError("last.ckpt cannot be written (No space left on device)")

    found = opened(tmp_path, n_trials=3)
    monkeypatch.setattr(trials_module, "build_run", fails)
    assert run_trials(found) == 0
    assert [trial.state.name for trial in found.study.trials] == ["FAIL", "WAITING"]
    assert finish(found, 0) == 1
    said = capsys.readouterr()
    assert "stopped by the error of the last trial; continue with: python -m src.tune" in said.err


def test_a_trial_of_another_host_has_ended_if_nobody_uses_its_run(tmp_path: Path) -> None:
    trial = {"process": "another:1", "run": str(tmp_path)}
    assert _is_gone(trial)
    assert not _is_gone({**trial, "beats": True})  # its database knows
    assert not _is_gone({"process": "another:1"})
    with lock_run(tmp_path):
        assert not _is_gone(trial)
    (tmp_path / "metrics.json").write_text('{"total_seconds": 1.0}')
    assert _is_gone(trial) is not is_finished(tmp_path)
