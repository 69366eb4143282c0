from collections.abc import Callable

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.engine.cli.cli import StarterCLI
from src.engine.training import deferred_metrics
from src.tasks.task import Task
from tests import toy
from tests.conftest import Run
from tests.tasks.waits import LIMITS, check_that_only_log_steps_wait, waits_by_step

Train = Callable[..., Run]


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """A tiny network and data set."""
    return (f"--config={toy.RECIPE}",)


def test_only_log_steps_wait_for_the_device(parse: Callable[..., StarterCLI], monkeypatch: pytest.MonkeyPatch) -> None:
    # Metrics are due between log steps; their update must be deferred.
    monkeypatch.setattr(deferred_metrics, "STEPS_PER_UPDATE", 7)
    check_that_only_log_steps_wait(parse("fit", *LIMITS, "--data.batch_size=10"))


def test_a_task_that_reads_its_loss_in_every_step_is_detected(
    parse: Callable[..., StarterCLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Task.training_step
    monkeypatch.setattr(Task, "training_step", lambda *args: (loss := step(*args), loss.item())[0])
    limits = ("--trainer.limit_train_batches=5", "--trainer.limit_val_batches=0", "--max_epochs=1")
    assert all("item" in found for found in waits_by_step(parse("fit", *limits)))


def test_metrics_do_not_depend_on_the_number_of_steps_per_update(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{stage}/{name}" for stage in ("train", "val", "test") for name in ("loss", "acc", "f1")]
    found = []
    for count in (1, 3, 50):
        monkeypatch.setattr(deferred_metrics, "STEPS_PER_UPDATE", count)
        metrics = train("--max_epochs=1", "--optimizer.lr=1e-4", "--trainer.limit_train_batches=8").metrics
        found.append([metrics[name] for name in names])
    assert found[0] == pytest.approx(found[1])
    assert found[0] == pytest.approx(found[2])
    assert all(0 < value < 10 for value in found[0])


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (("--trainer.log_every_n_steps=4",), [3, 7]),
        (("--trainer.log_every_n_steps=1",), [*range(10)]),
        (("--trainer.log_every_n_steps=2", "--trainer.accumulate_grad_batches=2"), [1, 3]),
    ],
)
def test_the_loss_of_a_step_is_logged_once_at_each_log_step(
    train: Train, words: tuple[str, ...], steps: list[int]
) -> None:
    events = EventAccumulator(str(train("fit", "--max_epochs=1", *words).folder)).Reload()
    assert [event.step for event in events.Scalars("train/loss_step")] == steps


def test_a_run_without_step_logging_still_logs_epoch_metrics(train: Train) -> None:
    words = ("--max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.log_every_n_steps=0")
    metrics = train("fit", *words, "--trainer.callbacks=null").metrics
    assert metrics["train/loss"] > 0
    assert "train/loss_step" not in metrics
    assert not torch.isnan(torch.tensor(metrics["val/loss"]))
