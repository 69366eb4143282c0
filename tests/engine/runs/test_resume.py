"""A run that goes on is the run that nothing happened to, bit by bit."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kill
import pytest
import torch
from kill import differences

from src.engine.runs.checkpoint import read_checkpoint
from src.engine.runs.runs import checkpoint_of
from src.engine.system.errors import InputError
from src.engine.system.interruption import Interrupted
from tests.conftest import Run
from tests.engine.runs.stops import ENDS, EXACT, differences_after_stops, stopped_at
from tests.toy import RECIPE, ToyMLP

Train = Callable[..., Run]

TOY = ("--model.net.dropout=0.3", "--max_epochs=3")  # 10 steps an epoch
PLATEAU = ("--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/loss", "--lr_scheduler.patience=0")
PLATEAU += ("--lr_scheduler.threshold=10", "--lr_scheduler.factor=0.5")  # every epoch halves the learning rate
EACH_EPOCH = "--lr_scheduler_interval=epoch"
INSIDE = ("--trainer.val_check_interval=4", "--trainer.check_val_every_n_epoch=null", "--trainer.max_steps=26")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "steps"),
    [
        pytest.param((), (1, 14), id="inside of an epoch"),
        pytest.param((), (9, 10, 19), id="at an epoch's end"),
        pytest.param(("--trainer.check_val_every_n_epoch=3",), (9, 19), id="at an epoch's end without validation"),
        pytest.param(("--trainer.max_steps=26",), (9, 19), id="at an epoch's end with max_steps"),
        pytest.param(PLATEAU, (9, 14, 25), id="with a plateau schedule"),
        pytest.param((*PLATEAU, "--trainer.max_steps=30"), (9, 14, 25), id="with a plateau schedule and max_steps"),
        pytest.param(INSIDE, (3, 4, 18), id="validated inside of an epoch"),
    ],
)
def test_a_run_that_is_stopped_goes_on_bit_by_bit(
    train: Train, tmp_path: Path, more: tuple[str, ...], steps: tuple[int, ...]
) -> None:
    assert differences_after_stops(train, tmp_path, (*TOY, *more), steps) == []


@pytest.mark.slow
def test_other_workers_change_nothing(train: Train, tmp_path: Path) -> None:
    words = (*TOY, "--max_epochs=2")
    assert differences_after_stops(train, tmp_path, words, (14,), goes_on=["--data.num_workers=2"]) == []
    (folder,) = (tmp_path / "logs" / "stopped").glob("version_*")
    assert "num_workers: 2" in (folder / "config.resume-1.yaml").read_text()
    assert "num_workers: 0" in (folder / "config.yaml").read_text()


@pytest.mark.slow
def test_a_checkpoint_of_the_best_epoch_goes_on_bit_by_bit_too(train: Train, tmp_path: Path) -> None:
    whole = train("fit", *TOY, *EXACT)
    with pytest.raises(Interrupted):
        train("fit", *TOY, *EXACT, "--name=stopped", *stopped_at(14, tmp_path))
    (folder,) = (tmp_path / "logs" / "stopped").glob("version_*")
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"PK lost")
    last = train("fit", "--ckpt_path=last", "--name=stopped")
    assert any("from best.ckpt" in line for line in last.messages)
    assert differences(whole.folder, last.folder) == []


@pytest.mark.slow
def test_three_kills_at_random_moments_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--kills=3", f"--folder={tmp_path}", "--", f"--config={RECIPE}", *TOY, "--max_epochs=30"]
    monkeypatch.setattr(sys, "argv", ["kill.py", *words])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(SystemExit) as stop:
        kill.main()
    output = capsys.readouterr().out
    assert stop.value.code == 0, output
    assert re.search(r"[1-3] kills; [1-9]\d+ logged values compared; 0 differences", output)


# Which run goes on


@pytest.mark.slow
def test_a_run_that_was_trained_but_not_tested_is_tested(train: Train, tmp_path: Path) -> None:
    fitted = train("fit", *TOY, "--max_epochs=1")
    metrics = fitted.folder / "metrics.json"
    metrics.write_text(json.dumps({}))  # as if it had died before its end
    run = train("--ckpt_path=last")
    assert run.folder == fitted.folder
    assert "test/acc" in run.metrics
    assert run.cli.trainer.global_step == 10


@pytest.mark.slow
@pytest.mark.parametrize("content", ["[]", "5", "not JSON", ""])
def test_metrics_that_are_no_json_object_are_written_again(train: Train, content: str) -> None:
    fitted = train("fit", *TOY, "--max_epochs=2")
    before = fitted.metrics
    (fitted.folder / "metrics.json").write_text(content)  # as if it had died between last checkpoint and end
    again = train("fit", "--ckpt_path=last")
    assert again.folder == fitted.folder
    own = ("total_seconds", "train_seconds", "peak_memory_mb")  # of the last process
    assert {**before, **{name: again.metrics[name] for name in own}} == again.metrics
    assert before["samples_per_second"] > 100


@pytest.mark.slow
def test_a_finished_run_that_trains_on_is_unfinished_again(train: Train, tmp_path: Path) -> None:
    first = train(*TOY, "--max_epochs=1")
    with pytest.raises(Interrupted):
        train("fit", f"--run={first.folder}", "--max_epochs=3", *stopped_at(14, tmp_path))
    assert "test/acc" not in first.metrics
    again = train("fit", "--ckpt_path=last")
    assert again.folder == first.folder
    assert again.cli.trainer.global_step == 30


@pytest.mark.slow
def test_a_run_that_was_moved_keeps_its_best_checkpoint(train: Train, tmp_path: Path) -> None:
    words = ("--checkpoint.mode=min", "--max_epochs=2")  # the first epoch is the best
    first = train("fit", *TOY, *words)
    moved = first.folder.rename(tmp_path / "moved")
    again = train(f"--run={moved}", "--max_epochs=3")
    best = moved / "checkpoints" / "best.ckpt"
    assert f"Testing {best}" in again.messages
    assert read_checkpoint(str(best))["global_step"] == 10


@pytest.mark.slow
def test_a_run_with_the_name_of_its_recipe_is_found(train: Train, tmp_path: Path) -> None:
    named = tmp_path / "named.yaml"
    named.write_text("name: mine\n")
    with pytest.raises(Interrupted):
        train("fit", *TOY, f"--config={named}", "--ckpt_path=auto", *stopped_at(3, tmp_path))
    again = train("fit", *TOY, f"--config={named}", "--max_epochs=1", "--ckpt_path=auto")
    assert again.folder.parts[-2:] == ("mine", "version_0")
    assert train("test", f"--config={named}").metrics["test/acc"] > 0


@pytest.mark.slow
def test_a_schedule_that_is_over_before_the_checkpoint_is_an_error(train: Train) -> None:
    run = train("fit", *TOY, "--max_epochs=2", "--lr_scheduler=OneCycleLR")
    problem = r"is at step 20 of a schedule with 3 steps in this run: give more --max_epochs"
    with pytest.raises(InputError, match=problem):
        train("fit", f"--run={run.folder}", "--max_epochs=3", "--lr_scheduler_interval=epoch")


# Runs that EarlyStopping has stopped

STOPS = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss", "--max_epochs=6")
STOPS = (*STOPS, "--trainer.callbacks.min_delta=100")  # only the first epoch is an improvement


@pytest.mark.slow
def test_a_run_that_stopped_early_says_so_and_is_finished(train: Train) -> None:
    run = train("fit", *TOY, *STOPS, "--trainer.callbacks.patience=1")
    reason = "Monitored metric val/loss did not improve in the last 1 records. Best score: "
    assert run.metrics["stopped_early"].startswith(f"epoch 2: {reason}")
    assert f"Stopped early at {run.metrics['stopped_early']}" in run.messages
    (run.folder / "metrics.json").unlink()  # as if it had been killed before the test
    again = train("--ckpt_path=last", "--max_epochs=9")
    assert again.folder == run.folder
    assert again.cli.trainer.global_step == 20
    assert "test/acc" in again.metrics
    (line,) = (line for line in again.messages if "has stopped early" in line)
    assert reason in line
    assert "change the patience of EarlyStopping, or remove it, to continue" in line


@pytest.mark.slow
def test_a_changed_patience_lets_a_stopped_run_train_on(train: Train) -> None:
    run = train("fit", *TOY, *STOPS, "--trainer.callbacks.patience=1")
    again = train("fit", f"--run={run.folder}", "--trainer.callbacks.patience=3")
    assert again.metrics["stopped_early"].startswith("epoch 4: ")
    over = train("fit", f"--run={run.folder}", "--trainer.callbacks=null")
    assert over.cli.trainer.global_step == 60
    assert "stopped_early" not in over.metrics


def test_a_run_that_reaches_its_end_has_not_stopped_early(train: Train) -> None:
    run = train("fit", *TOY, *STOPS, "--trainer.callbacks.patience=1", "--max_epochs=2")
    assert "stopped_early" not in run.metrics


@pytest.mark.slow
@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize(("step", "epochs"), [(4, 1), (14, 3)])
def test_a_run_that_a_callback_ends_goes_on_there(train: Train, validates: bool, step: int, epochs: int) -> None:
    words = (*TOY, *EXACT, f"--max_epochs={epochs}", f"--trainer.limit_val_batches={float(validates)}")
    words += () if validates else ("--checkpoint.monitor=null",)
    ended = train("fit", *words, ENDS, f"--trainer.callbacks.step={step}", "--name=ended")
    assert ended.cli.trainer.global_step == step
    assert ended.metrics["stopped_early"].endswith("a callback or --trainer.max_time ended it")
    again = train("fit", f"--run={ended.folder}")
    assert again.cli.trainer.global_step == 10 * epochs
    whole = train("fit", *words)
    assert all((value == whole.weights[name]).all() for name, value in again.weights.items())


@pytest.mark.slow
def test_a_run_that_ends_between_two_steps_goes_on_in_its_epoch(train: Train) -> None:
    words = ("--max_epochs=1", "--trainer.accumulate_grad_batches=4", ENDS)
    ended = train("fit", *TOY, *words, "--trainer.callbacks.batch=6")
    assert ended.cli.trainer.global_step == 1
    again = train("fit", f"--run={ended.folder}")
    assert again.cli.trainer.global_step == 3  # after batches 8 and 10


@pytest.mark.slow
def test_batches_of_another_size_are_refused_in_an_epoch_and_with_a_schedule_of_steps(
    train: Train, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        train("fit", *TOY, *stopped_at(3, tmp_path))
    with pytest.raises(InputError, match=r"batch_size 64: the checkpoint is in the middle of an epoch .* of 32"):
        train("fit", "--ckpt_path=last", "--data.batch_size=64")
    ended = train("fit", "--ckpt_path=last").folder
    more = (f"--run={ended}", "--data.batch_size=64", "--max_epochs=5")
    with pytest.raises(InputError, match=r"batch_size 64: the checkpoint has a schedule that counts"):
        train("fit", *more)
    for name, value, old in (("accumulate_grad_batches", 2, "1"), ("limit_train_batches", 1, r"1\.0")):
        with pytest.raises(InputError, match=f"{name} {value}: the checkpoint has .*, with {old}: give {old}"):
            train("fit", f"--run={ended}", "--max_epochs=5", f"--trainer.{name}={value}")
    plain = train("fit", "--max_epochs=1", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1", EACH_EPOCH).folder
    assert train("fit", f"--run={plain}", *more[1:]).cli.trainer.current_epoch == 5


class Loaded(ToyMLP):
    """A network that a checkpoint rebuilds without the files that it was built from."""

    def __init__(self, source: str | None = None) -> None:
        super().__init__()
        self.source, self.rebuild = source, {"source": None}


@pytest.mark.slow
def test_a_continued_run_names_the_files_that_its_network_was_built_from(train: Train, tmp_path: Path) -> None:
    words = (f"--model.net={__name__}.Loaded", "--model.net.source=files", "--max_epochs=3")
    with pytest.raises(Interrupted):
        train("fit", *words, *stopped_at(3, tmp_path))
    (folder,) = (tmp_path / "logs" / "toy").glob("version_*")
    with pytest.raises(Interrupted):
        train("fit", f"--run={folder}", *stopped_at(14, tmp_path))
    train("fit", f"--run={folder}", "--trainer.log_every_n_steps=7")
    changed = [path.read_text() for path in sorted(folder.glob("config.resume-*.yaml"))]
    assert "log_every_n_steps: 7" in changed[-1]
    assert all("source: files" in text for text in changed)
    train("fit", f"--run={folder}", "--model.net.source=others", "--max_epochs=4")
    assert any("source: others" in path.read_text() for path in folder.glob("config.resume-*.yaml"))


@pytest.mark.slow
def test_the_best_checkpoint_of_a_run_continued_with_another_metric_is_its_own(train: Train, tmp_path: Path) -> None:
    first = train("fit", "--max_epochs=1", "--checkpoint.monitor=val/loss", "--checkpoint.mode=min")
    more = ("--checkpoint.monitor=val/acc", "--checkpoint.mode=max", "--checkpoint.filename={epoch}")
    again = train("fit", f"--run={first.folder}", "--max_epochs=2", *more)
    best = again.cli.trainer.checkpoint_callback.best_model_path
    assert Path(best).name != "best.ckpt"
    assert (first.folder / "checkpoints" / "best.ckpt").exists()
    assert str(checkpoint_of(first.folder, "best")) == best


@pytest.mark.slow
def test_a_new_run_from_a_run_that_stopped_early_waits_anew(train: Train) -> None:
    first = train("fit", *STOPS, "--trainer.callbacks.patience=1")
    given = f"--ckpt_path={first.folder / 'checkpoints' / 'last.ckpt'}"
    again = train("fit", given, "--trust=tests.toy", *STOPS, "--trainer.callbacks.patience=3")
    assert again.cli.trainer.current_epoch == 6


@pytest.mark.slow
def test_a_new_run_does_not_stop_for_the_best_value_of_the_run_it_begins_from(train: Train) -> None:
    first = (
        train("fit", *STOPS, "--trainer.callbacks.patience=1", "--max_epochs=1").folder / "checkpoints" / "last.ckpt"
    )
    content = read_checkpoint(str(first))
    (state,) = (one for one in content["callbacks"].values() if "wait_count" in one)
    state["best_score"] = torch.tensor(-1e9)
    first.unlink()  # its tensors are mapped from it
    torch.save(content, first)
    improves = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.patience=1")
    improves += ("--trainer.callbacks.monitor=val/loss",)
    again = train("fit", f"--ckpt_path={first}", "--trust=tests.toy", *improves, "--max_epochs=3")
    assert again.cli.trainer.current_epoch == 3


@pytest.mark.slow
def test_a_run_that_stopped_early_stays_stopped_with_another_callback(train: Train) -> None:
    run = train("fit", *TOY, *STOPS, "--trainer.callbacks.patience=1")
    again = train("fit", f"--run={run.folder}", "--config=configs/callbacks/pictures.yaml")
    assert again.cli.trainer.global_step == run.cli.trainer.global_step
    assert any("has stopped early" in line for line in again.messages)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [1, 2])
def test_a_run_that_keeps_fewer_checkpoints_keeps_the_best(train: Train, kept: int) -> None:
    monitor = ("--checkpoint.monitor=val/loss", "--checkpoint.mode=min")
    first = train("fit", "--max_epochs=3", "--checkpoint.save_top_k=-1", *monitor)
    scores = first.cli.trainer.checkpoint_callback.best_k_models  # type: ignore[union-attr]
    again = train("fit", f"--run={first.folder}", "--max_epochs=4", f"--checkpoint.save_top_k={kept}")
    callback: Any = again.cli.trainer.checkpoint_callback
    everyone = {**scores, **callback.best_k_models}
    assert {*callback.best_k_models} == {*sorted(everyone, key=everyone.__getitem__)[:kept]}
    assert all(Path(path).exists() for path in callback.best_k_models)
    one = train("fit", "--max_epochs=1", "--checkpoint.save_top_k=3", "--name=one")
    train("fit", f"--run={one.folder}", "--max_epochs=2", "--checkpoint.save_top_k=1")


@pytest.mark.slow
def test_another_metric_replaces_the_best_checkpoint_only_by_a_better_one(train: Train) -> None:
    first = train("fit", "--max_epochs=1", "--checkpoint.monitor=val/loss", "--checkpoint.mode=min")
    best = first.folder / "checkpoints" / "best.ckpt"
    content = read_checkpoint(str(best))
    content["record"]["metrics"]["val/acc"] = 1.5  # no validation reaches it
    best.unlink()  # its tensors are mapped from it
    torch.save(content, best)
    again = train(
        "fit", f"--run={first.folder}", "--max_epochs=2", "--checkpoint.monitor=val/acc", "--checkpoint.mode=max"
    )
    assert again.cli.trainer.checkpoint_callback.best_model_path == str(best)  # type: ignore[union-attr]
    assert read_checkpoint(str(best))["global_step"] == content["global_step"]


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, float("nan")], ids=["damaged", "nan"])
def test_a_best_checkpoint_without_a_value_is_none(train: Train, content: float | None) -> None:
    first = train("fit", "--max_epochs=1", "--checkpoint.monitor=val/loss", "--checkpoint.mode=min")
    best = first.folder / "checkpoints" / "best.ckpt"
    if content is None:
        best.write_bytes(best.read_bytes()[:5000])
    else:
        read = read_checkpoint(str(best))
        read["record"]["metrics"]["val/acc"] = content
        best.unlink()  # its tensors are mapped from it
        torch.save(read, best)
    monitor = ("--checkpoint.monitor=val/acc", "--checkpoint.mode=max")
    again = train("fit", f"--run={first.folder}", "--max_epochs=2", *monitor)
    new = again.cli.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    assert read_checkpoint(new)["global_step"] == 20


@pytest.mark.slow
def test_a_plateau_schedule_forgets_the_best_value_of_another_run(train: Train) -> None:
    plateau = ("--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/loss", "--lr_scheduler.patience=5")
    last = train("fit", *plateau, "--max_epochs=1").folder / "checkpoints" / "last.ckpt"
    content = read_checkpoint(str(last))
    content["record"]["metrics"]["val/loss"] = content["lr_schedulers"][0]["best"] = -1e9
    last.unlink()  # its tensors are mapped from it
    torch.save(content, last)
    again = train("fit", f"--ckpt_path={last}", "--trust=tests.toy", *plateau, "--max_epochs=3")
    (config,) = again.cli.trainer.lr_scheduler_configs
    assert config.scheduler.best > 0
    assert config.scheduler.num_bad_epochs < 2
