from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from src.models import task as task_module
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from src.engine.cli.cli import StarterCLI
from tests.conftest import Run

Train = Callable[..., Run]

# What makes the program wait for a GPU.
WAITS = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"}


class Waits(TorchFunctionMode):
    """Counts the calls that read a tensor's value."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in WAITS:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Reads(TorchDispatchMode):
    """Counts the reads below these: `bool(tensor)` in torch's own code arrives as one too."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_local_scalar_dense" in str(func) or "nonzero" in str(func):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class Steps(Callback):
    """Notes after each step what has been found since the one before, fetching its batch included."""

    def __init__(self, *modes: Waits | Reads) -> None:
        self.modes = modes
        self.steps: list[list[str]] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.steps.append([name for mode in self.modes for name in mode.found])
        for mode in self.modes:
            mode.found.clear()


def steps(cli: StarterCLI) -> list[list[str]]:
    waits, reads = Waits(), Reads()
    cli.trainer.callbacks.append(noted := Steps(waits, reads))
    with waits, reads:
        cli.run()
    return noted.steps


@pytest.mark.parametrize(
    "recipe",
    [
        ("--data.source=sample", "--model.net.width=2", "--data.batch_size=64"),
        ("--config=configs/text/shakespeare_gpt_fast.yaml", "--model.net.num_layers=1", "--data.block_size=16"),
    ],
    ids=["images", "text"],
)
def test_between_log_steps_no_step_waits_for_the_device(
    parse: Callable[..., StarterCLI], recipe: tuple[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_module, "STEPS_PER_UPDATE", 7)  # metrics are due between log steps, and have to wait
    limits = ("--trainer.limit_train_batches=45", "--trainer.limit_val_batches=0", "--trainer.log_every_n_steps=20")
    found = steps(parse("fit", *recipe, *limits, "--trainer.max_steps=45", "--trainer.val_check_interval=null"))
    assert len(found) == 45
    assert found[20] or found[19]  # a log step does wait: the counting works
    # The first step also holds what is done once, and a log is written at the end of its step or after it.
    quiet = [step for number, step in enumerate(found) if number not in (0, 19, 20, 39, 40)]
    assert quiet == [[]] * 40


def test_a_task_that_reads_its_loss_in_every_step_is_found(
    parse: Callable[..., StarterCLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = task_module.Task.training_step
    monkeypatch.setattr(task_module.Task, "training_step", lambda *args: (loss := step(*args), loss.item())[0])
    limits = ("--trainer.limit_train_batches=5", "--trainer.limit_val_batches=0", "--max_epochs=1")
    assert all("item" in found for found in steps(parse("fit", "--data.source=sample", "--model.net=MLP", *limits)))


@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_metrics_do_not_depend_on_how_many_steps_are_taken_at_once(
    train: Train, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    found = []
    for count in (7, at_once):
        monkeypatch.setattr(task_module, "STEPS_PER_UPDATE", count)
        found.append(train("--model.net=MLP", "--max_epochs=1", "--trainer.limit_train_batches=8").metrics)
    names = [f"{stage}/{name}" for stage in ("train", "val", "test") for name in ("loss", "acc", "f1")]
    assert [found[0][name] for name in names] == pytest.approx([found[1][name] for name in names])


def test_the_loss_of_a_step_is_logged_at_log_steps(train: Train) -> None:
    words = ("--model.net=MLP", "--max_epochs=1", "--trainer.limit_train_batches=12", "--trainer.log_every_n_steps=5")
    events = EventAccumulator(str(train("fit", *words).folder)).Reload()
    assert [event.step for event in events.Scalars("train/loss_step")] == [4, 9]


def test_a_run_that_never_logs_a_step_still_knows_its_epochs(train: Train, tmp_path: Path) -> None:
    words = ("--model.net=MLP", "--max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.log_every_n_steps=0")
    metrics = train("fit", *words, "--trainer.callbacks=null").metrics
    assert metrics["train/loss"] > 0
    assert "train/loss_step" not in metrics
    assert not torch.isnan(torch.tensor(metrics["val/loss"]))
