"""Run folders, and checkpoints with their own arguments."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from src.engine.cli.cli import StarterCLI
from src.engine.runs import runs
from src.engine.runs.runs import claim_folder, run_of
from src.engine.system.errors import InputError
from src.tasks.classifier import Classifier
from tests.conftest import QUIET, Run, program, with_recipe, write
from tests.toy import RECIPE, ToyMLP

Train = Callable[..., Run]
# As little as still trains, validates and tests.
SHORT = (
    "--model.net=tests.toy.ToyMLP",
    "--max_epochs=1",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=2",
)


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """The toy recipe, whose checkpoints name classes of the tests."""
    return (f"--config={RECIPE}", "--trust=tests.toy")


def test_the_run_of_a_checkpoint_is_found_from_its_own_folder_too(
    toy_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(toy_checkpoint)
    monkeypatch.chdir(path.parent)
    assert run_of(path) == run_of(Path(path.name)) == path.parents[1]


def train_without_recipe(folder: Path, *args: str) -> Run:
    cli = StarterCLI(with_recipe(args, ("--trust=tests.toy",), folder), time.perf_counter())
    cli.run()
    return Run(cli, "", [])


# Run folders


@pytest.mark.slow
def test_a_run_folder_holds_everything_and_nothing_else(train: Train) -> None:
    run = train(*SHORT)
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    names = {path.name for path in run.folder.iterdir() if not path.name.startswith(("events.out.tfevents", "."))}
    tables = {"confusion_matrix.csv", "metrics.json"}
    assert names == {"checkpoints", "config.yaml", "environment.txt", "hparams.yaml"} | tables
    assert list(run.folder.glob("events.out.tfevents*"))


@pytest.mark.slow
def test_the_last_checkpoint_is_the_last_step_even_where_it_is_not_the_best(train: Train) -> None:
    run = train("fit", *SHORT, "--checkpoint.monitor=val/acc", "--checkpoint.mode=min", "--max_epochs=3")
    best, last = (
        torch.load(run.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"]
        for name in ("best", "last")
    )
    assert best < last == run.cli.trainer.global_step == 9
    part = train("fit", *SHORT, "--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--checkpoint.monitor=null")
    assert torch.load(part.folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
def test_the_saved_configuration_repeats_the_run_bitwise(train: Train) -> None:
    first = train("fit", *SHORT, "--config=configs/callbacks/early_stopping.yaml", "--name=mine", "--optimizer=SGD")
    saved = first.folder / "config.yaml"
    assert "ckpt_path" not in saved.read_text()
    again = train("fit", "--config", str(saved))
    assert again.folder.parent == first.folder.parent
    assert again.folder.parent.name == "mine"
    assert again.folder != first.folder
    assert first.weights.keys() == again.weights.keys()
    assert all(torch.equal(value, again.weights[name]) for name, value in first.weights.items())
    other = train("fit", "--config", str(saved), "--seed_everything=1")
    assert not all(torch.equal(value, other.weights[name]) for name, value in first.weights.items())


@pytest.mark.slow
def test_convolutions_and_dropout_repeat_bitwise_too(train: Train) -> None:
    first = train("fit", "--model.net.dropout=0.5", "--max_epochs=1", "--trainer.limit_val_batches=1")
    again = train("fit", "--config", str(first.folder / "config.yaml"))
    assert all(torch.equal(value, again.weights[name]) for name, value in first.weights.items())


@pytest.mark.slow
def test_a_continued_run_saves_no_checkpoint_path(train: Train) -> None:
    first = train("fit", *SHORT)
    second = train("fit", "--ckpt_path", str(first.folder / "checkpoints" / "last.ckpt"), "--max_epochs=2")
    assert second.cli.trainer.current_epoch == 2
    assert "ckpt_path" not in (second.folder / "config.yaml").read_text()


def test_many_runs_that_start_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    barrier, folders = threading.Barrier(16), []

    def claim() -> None:
        barrier.wait()
        folders.append(claim_folder(tmp_path / "recipe"))

    threads = [threading.Thread(target=claim) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folder.name for folder in folders) == sorted(f"version_{number}" for number in range(16))


def test_a_new_run_folder_never_reuses_an_old_number(tmp_path: Path) -> None:
    (tmp_path / "recipe" / "version_7").mkdir(parents=True)
    assert claim_folder(tmp_path / "recipe").name == "version_8"


def test_a_run_that_cannot_start_leaves_no_folder(train: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data folder"):
        train(*SHORT, "--data=tests.engine.runs.toys.UnreachableData")
    assert list((tmp_path / "logs" / "toy").iterdir()) == []


def test_runs_without_logger_or_checkpoints_work(train: Train) -> None:
    run = train(*SHORT, "--trainer.logger=false", "--trainer.enable_checkpointing=false")
    assert "test/acc" in run.metrics
    names = {path.name for path in run.folder.iterdir() if not path.name.startswith(".")}
    assert names == {"config.yaml", "environment.txt", "metrics.json"}


@pytest.mark.slow
def test_several_best_checkpoints_are_kept_apart(train: Train) -> None:
    run = train("fit", *SHORT, "--max_epochs=3", "--checkpoint.save_top_k=-1")
    names = {path.name for path in (run.folder / "checkpoints").iterdir()}
    assert names == {"best-epoch=0-step=3.ckpt", "best-epoch=1-step=6.ckpt", "best-epoch=2-step=9.ckpt", "last.ckpt"}


# Checkpoints and their own arguments


@pytest.mark.slow
def test_a_checkpoint_brings_its_own_model_arguments(train: Train, tmp_path: Path) -> None:
    fitted = train("fit", *SHORT, "--model.net.hidden=9")
    path = str(fitted.folder / "checkpoints" / "last.ckpt")
    assert train("test", "--ckpt_path", path).cli.model.net.hidden == 9
    # Overlays, and the command line over them, are stronger than the checkpoint.
    overlay = write(tmp_path / "loss.yaml", "model: {loss: MSELoss}\n")
    over = train("test", "--ckpt_path", path, "--config", overlay).cli
    assert isinstance(over.model.loss, nn.MSELoss)
    assert over.model.net.hidden == 9
    line = train("test", "--ckpt_path", path, "--config", overlay, "--model.loss=CrossEntropyLoss").cli
    assert isinstance(line.model.loss, nn.CrossEntropyLoss)


@pytest.mark.slow
def test_without_a_recipe_the_checkpoints_own_configuration_is_it(train: Train, tmp_path: Path) -> None:
    fitted = train("fit", *SHORT, "--name=mine", "--data.batch_size=50")
    given = ("test", "--ckpt_path", str(fitted.folder / "checkpoints" / "last.ckpt"))
    tested = train_without_recipe(tmp_path, *given)
    assert tested.metrics["data_source"] == "toy"
    assert tested.cli.datamodule.batch_size == 50
    by_name = train_without_recipe(tmp_path, "test", f"--run={fitted.folder}")  # of a run of one's own, all counts
    assert by_name.folder.parent == fitted.folder
    assert by_name.cli.datamodule.batch_size == 50
    assert train(*given, "--fast_dev_run").cli.datamodule.batch_size == 32  # with the toy recipe


@pytest.mark.slow
def test_a_finished_run_cannot_go_on_without_more_epochs(train: Train, tmp_path: Path) -> None:
    path = str(train("fit", *SHORT).folder / "checkpoints" / "last.ckpt")
    with pytest.raises(InputError, match=r"the checkpoint already has 1 epochs: give more, as in --max_epochs 2"):
        train_without_recipe(tmp_path, "fit", "--ckpt_path", path)
    with pytest.raises(InputError, match=r"the checkpoint already has 3 steps"):
        train("fit", "--ckpt_path", path, "--max_epochs=9", "--trainer.max_steps=3")


@pytest.mark.slow
def test_an_unfinished_run_goes_on_with_no_fewer_epochs_than_it_has(train: Train) -> None:
    folder = train("fit", *SHORT, "--max_epochs=2").folder
    (folder / "metrics.json").unlink()  # as if killed before the test
    with pytest.raises(InputError, match=r"the checkpoint already has 2 epochs: give more, as in --max_epochs 4"):
        train("fit", f"--run={folder}", "--max_epochs=1")
    assert train("fit", f"--run={folder}", "--max_epochs=2").folder == folder


@pytest.mark.slow
def test_an_override_that_does_not_fit_the_weights_is_named(train: Train) -> None:
    fitted = train("fit", *SHORT)
    path = str(fitted.folder / "checkpoints" / "last.ckpt")
    with pytest.raises(
        InputError, match=r"^--model.net.hidden 9 does not fit the weights of the checkpoint: net.layers"
    ):
        train("test", "--ckpt_path", path, "--model.net.hidden=9")
    with pytest.raises(InputError, match=r"^--model.net \S*ToyNet does not fit the weights"):
        train("test", "--ckpt_path", path, "--model.net=tests.toy.ToyNet")


@pytest.mark.slow
def test_a_checkpoint_of_the_command_line_loads_in_python(train: Train) -> None:
    run = train("fit", *SHORT)
    loaded = Classifier.load_from_checkpoint(run.folder / "checkpoints" / "last.ckpt")
    assert isinstance(loaded.net, ToyMLP)
    assert torch.equal(loaded.net.layers[1].weight, run.weights["net.layers.1.weight"])


# From elsewhere, and in several processes


@pytest.mark.slow
def test_two_processes_make_one_run_from_another_folder_too(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    two = ("--devices", "2", "--strategy", "ddp", f"--trainer.default_root_dir={logs}")
    # Lightning reads which process it is in when it is imported, which a fork has done before.
    done = program(f"--config={RECIPE}", *SHORT, *QUIET, *two, cwd=tmp_path, REAL_INTERPRETER="1")
    assert done.returncode == 0, done.stderr
    (folder,) = (logs / "toy").iterdir()
    assert folder.name == "version_0"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["devices"] == "2"
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in done.stderr
    assert done.stdout.count("run folder") == 1
    assert json.loads((folder / "metrics.json").read_text())["test/loss"] > 0


def test_runs_land_in_the_projects_logs_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    StarterCLI([f"--config={RECIPE}", "--accelerator=cpu"], time.perf_counter())
    assert (tmp_path / "logs" / "toy" / "version_0").is_dir()


def test_a_run_that_cannot_be_written_is_tested_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"give the checkpoint's path with --ckpt_path, and another folder"):
        claim_folder(tmp_path / "file" / "version_0", stem="test")
