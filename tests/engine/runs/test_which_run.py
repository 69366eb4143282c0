"""Which run, and which of its checkpoints, a command goes on with."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from src.engine.cli import config
from src.engine.cli.resolved_checkpoint import resolve_checkpoint
from src.engine.runs.checkpoint import read_checkpoint
from src.engine.runs.runs import good_checkpoint, newest_run, runs_to_continue
from src.engine.runs.trust import Trust, run_configuration
from src.engine.system.errors import InputError
from src.engine.system.interruption import Interrupted
from tests.conftest import Run, write
from tests.engine.runs.stops import stopped_at
from tests.toy import RECIPE

Train = Callable[..., Run]

TOY = ("--model.net.dropout=0.3", "--max_epochs=3")  # 10 steps an epoch


@pytest.mark.slow
def test_last_takes_the_newest_unfinished_run_of_the_recipe(train: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no unfinished run with a checkpoint"):
        train("fit", *TOY, "--ckpt_path=last")
    with pytest.raises(Interrupted):
        train("fit", *TOY, *stopped_at(3, tmp_path))
    finished = train("fit", *TOY, "--max_epochs=1")
    other = train("fit", *TOY, "--max_epochs=1", "--name=other")
    assert (finished.folder.name, other.folder.name) == ("version_1", "version_0")
    run = train("fit", "--ckpt_path=last")
    assert run.folder == finished.folder.with_name("version_0")
    with pytest.raises(InputError, match="no unfinished run"):
        train("fit", "--ckpt_path=last")


@pytest.mark.slow
def test_auto_goes_on_or_begins(train: Train, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train("fit", *TOY, "--ckpt_path=auto", *stopped_at(3, tmp_path))
    again = train("fit", *TOY, "--max_epochs=1", "--ckpt_path=auto")
    assert again.folder.name == "version_0"
    fresh = train("fit", *TOY, "--max_epochs=1", "--ckpt_path=auto")
    assert fresh.folder.name == "version_1"


@pytest.mark.slow
def test_a_job_that_is_started_again_finds_its_own_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.engine.parts.clusters.job_name", lambda: os.environ.get("JOB", ""))
    monkeypatch.setattr("src.engine.parts.clusters.restarts", lambda: int(os.environ.get("RESTARTS", "0")))
    for job, step in (("slurm 1", 3), ("torchrun 2", 4), ("", 5)):
        monkeypatch.setenv("JOB", job)
        with pytest.raises(Interrupted):
            train("fit", *TOY, "--ckpt_path=auto", "--name=mine", *stopped_at(step, tmp_path))
    names = sorted(path.name for path in (tmp_path / "logs" / "mine").iterdir())
    assert names == ["version_0", "version_1"]  # the last went on with the run of torchrun, and not with SLURM's
    monkeypatch.setenv("JOB", "slurm 1")
    monkeypatch.setenv("RESTARTS", "1")
    assert train("fit", *TOY, "--ckpt_path=auto", "--name=mine").folder.name == "version_0"


def test_the_default_recipe_says_where_runs_are(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    with pytest.raises(Interrupted):
        train("fit", *TOY, "--name=stopped", *stopped_at(3, tmp_path))
    (folder,) = (tmp_path / "logs" / "stopped").glob("version_*")
    (tmp_path / "configs").mkdir()
    place = f"trainer: {{default_root_dir: {tmp_path / 'logs'}}}\n"
    recipe = re.sub("^trainer:$.*?(?=^\\w)|\\Z", "", Path(RECIPE).read_text(), flags=re.M | re.S)
    write(tmp_path / "configs" / "default.yaml", f"name: stopped\n{place}{recipe}")
    monkeypatch.setattr(config, "ROOT", tmp_path)
    assert resolve_checkpoint("fit", [], [("--ckpt_path", "auto")]).run_folder == folder
    saved = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(saved.replace("tests.toy.ToyData", "tests.toy.Renamed"))
    assert resolve_checkpoint("fit", [], [("--ckpt_path", "auto")]).run_folder is None
    assert any("settings that no longer work (--data tests.toy.Renamed" in line for line in messages)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("--model.net=tests.toy.ToyMLP", "--model.net ToyNet, not ToyMLP"),
        ("--data=tests.engine.cli.toys.SizedData", "--data ToyData, not SizedData"),
        ("--data.path=there", "--data.path here, not there"),
    ],
)
def test_a_run_of_another_recipe_with_the_same_name_is_passed_over(
    train: Train, tmp_path: Path, other: str, words: str
) -> None:
    here = ("--data=tests.engine.runs.toys.PlacedData", "--data.path=here") if ".path" in other else ()
    with pytest.raises(Interrupted):
        train("fit", *here, *stopped_at(3, tmp_path))
    run = tmp_path / "logs" / "toy" / "version_0"
    line = f"{run} has {words}, so it is not continued: give --run {run} to continue it"
    with pytest.raises(InputError, match="no unfinished run"):
        train("fit", *here, other, "--ckpt_path=last")
    fresh = train("fit", *here, other, "--ckpt_path=auto", "--max_epochs=1")
    assert line in fresh.messages
    assert fresh.folder.name == "version_1"
    own = train("fit", *here, "--ckpt_path=auto")
    assert own.folder == run


@pytest.mark.slow
def test_a_run_whose_data_was_moved_is_found_by_its_last_settings(train: Train, tmp_path: Path) -> None:
    placed = "--data=tests.engine.runs.toys.PlacedData"
    with pytest.raises(Interrupted):
        train("fit", placed, "--data.path=here", *stopped_at(3, tmp_path))
    run = tmp_path / "logs" / "toy" / "version_0"
    (run / "config.resume-1.yaml").write_text((run / "config.yaml").read_text().replace("path: here", "path: there"))
    assert train("fit", placed, "--data.path=there", "--ckpt_path=auto").folder == run


@pytest.mark.slow
def test_a_run_given_with_another_recipe_says_that_its_own_is_used(train: Train) -> None:
    run = train("fit", "--model.net=tests.toy.ToyMLP", "--max_epochs=1")
    again = train("fit", f"--run={run.folder}", "--max_epochs=2")
    assert f"{run.folder} has --model.net ToyMLP, not ToyNet: it is continued with its own settings" in again.messages


@pytest.mark.slow
def test_a_checkpoint_of_another_run_in_a_run_folder_is_passed_over(train: Train) -> None:
    run = train("fit", *TOY, "--max_epochs=1")
    other = train("fit", "--max_epochs=2", "--name=other")
    last = run.folder / "checkpoints" / "last.ckpt"
    shutil.copy(other.folder / "checkpoints" / "last.ckpt", last)
    again = train("fit", f"--run={run.folder}", "--max_epochs=2")
    assert any(line.startswith(f"{last} has another configuration than config.yaml") for line in again.messages)
    assert f"Continuing run {run.folder} from best.ckpt" in again.messages


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_given_checkpoint_of_another_network_says_what_is_used(train: Train, stage: str) -> None:
    run = train("fit", "--model.net=tests.toy.ToyMLP", "--max_epochs=1")
    path = run.folder / "checkpoints" / "last.ckpt"
    again = train(stage, f"--ckpt_path={path}", "--max_epochs=2", "--trust=tests.toy")
    assert "The checkpoint has --model.net ToyMLP, not ToyNet: its network is used, and the recipe's data" in (
        again.messages
    )


@pytest.mark.slow
def test_the_best_checkpoint_of_another_run_is_not_that_of_a_new_one(train: Train) -> None:
    first = train("fit", *TOY, "--max_epochs=1")
    given = f"--ckpt_path={first.folder / 'checkpoints' / 'last.ckpt'}"
    again = train(given, "--trust=tests.toy", "--max_epochs=2", "--trainer.max_steps=13")  # ends before a validation
    assert "Testing the last weights: no best checkpoint was saved" in again.messages


@pytest.mark.filterwarnings("ignore:.ModelCheckpoint.*could not find the monitored key")
def test_a_run_without_a_best_checkpoint_is_tested_by_its_last(train: Train) -> None:
    train("fit", *TOY, "--trainer.max_steps=3")  # ends before a validation
    with pytest.raises(InputError, match=r"no best checkpoint, it has last\.ckpt: give --ckpt_path last, or a path$"):
        train("test")
    assert "test/loss" in train("test", "--ckpt_path=last").metrics


def test_a_named_folder_must_be_a_run(train: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--run \S*nowhere: no such folder"):
        train("fit", f"--run={tmp_path / 'nowhere'}")
    with pytest.raises(InputError, match="has no checkpoint to continue from"):
        train("fit", f"--run={tmp_path}")


def test_a_new_run_from_a_checkpoint_selects_its_best_as_the_old_one_did(train: Train) -> None:
    monitor = ("--checkpoint.monitor=val/f1", "--checkpoint.mode=max")
    path = train("fit", "--max_epochs=1", *monitor).folder / "checkpoints" / "last.ckpt"
    content = read_checkpoint(str(path))
    assert run_configuration(content, Trust(("tests.toy",)))["checkpoint"] == {"monitor": "val/f1", "mode": "max"}
    content["config"] = content["config"].replace("monitor: val/f1", "monitor: [1]")
    assert "checkpoint" not in run_configuration(content, Trust(("tests.toy",)))


def test_a_checkpoint_in_the_default_recipe_is_where_a_new_run_begins(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train("fit", "--max_epochs=1").folder
    (tmp_path / "configs").mkdir()
    root = f"trainer: {{default_root_dir: {tmp_path / 'logs'}}}\n"
    recipe = re.sub("^trainer:$.*?(?=^\\w)|\\Z", "", Path(RECIPE).read_text(), flags=re.M | re.S)
    write(tmp_path / "configs" / "default.yaml", f"ckpt_path: mine.ckpt\nname: toy\n{root}{recipe}")
    monkeypatch.setattr(config, "ROOT", tmp_path)
    begun = resolve_checkpoint("fit", [], [])
    assert begun.path == "mine.ckpt"
    assert [tree["name"] for _, tree in begun.loaded] == ["toy"]  # its settings, not those of the checkpoint
    checkpoints = folder / "checkpoints"
    assert resolve_checkpoint("test", [], []).path == str(checkpoints / "best.ckpt")
    assert resolve_checkpoint("fit", [], [("--run", str(folder))]).path == str(checkpoints / "last.ckpt")
    tested = resolve_checkpoint("test", [], [("--ckpt_path", str(checkpoints / "best.ckpt"))])
    assert tested.evaluated == folder


@pytest.mark.slow
def test_a_test_that_is_no_try_has_a_checkpoint(train: Train) -> None:
    train("fit", *TOY, "--max_epochs=1")
    assert train("test", "--fast_dev_run=false").cli.config.ckpt_path.endswith("best.ckpt")
    assert train("test", "--fast_dev_run").cli.config.ckpt_path is None


def test_a_run_that_cannot_be_locked_is_not_said_to_be_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    (tmp_path / "version_0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "version_0" / "checkpoints" / "last.ckpt").touch()

    def acquire(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    assert not list(runs_to_continue(tmp_path, automatic=True))
    assert re.fullmatch(r"Not continued: run folder .* cannot be written \(No locks available\)", messages[0])


def test_a_run_whose_configuration_was_edited_says_so(train: Train) -> None:
    folder = train("fit", "--max_epochs=1", "--data.size=96").folder
    with (folder / "config.yaml").open("a") as file:
        file.write("# mine\n")
    with pytest.raises(InputError, match=r"config.yaml was edited\): not used") as caught:
        good_checkpoint(folder)
    assert "undamaged" not in str(caught.value)


def test_a_checkpoint_may_be_given_by_its_name_in_the_run(train: Train, tmp_path: Path) -> None:
    folder = train("fit", "--max_epochs=1", "--data.size=96").folder
    options = [("--run", str(folder)), ("--ckpt_path", "best.ckpt")]
    found = resolve_checkpoint("test", [], options)
    assert (found.path, found.evaluated) == (str(folder / "checkpoints" / "best.ckpt"), folder)
    elsewhere = [*options, ("--trainer.default_root_dir", str(tmp_path / "mine"))]
    assert resolve_checkpoint("test", [], elsewhere).evaluated is None  # a run that cannot be written to


def test_the_command_that_makes_a_missing_run_names_it(tmp_path: Path) -> None:
    for name, words in (("mine", "src.train and the same --config or --name, or give"), (None, "src.train, or give")):
        with pytest.raises(InputError, match=words):
            newest_run(tmp_path, name)
