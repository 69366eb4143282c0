"""Layers that a module builds late, freezes, or gives unusual parameters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from src.engine.cli.cli import StarterCLI
from src.engine.system.errors import InputError
from tests.conftest import Run
from tests.engine.cli.lightning_basics import FEATURES, NumbersData
from tests.engine.cli.test_own_module import Own

Train = Callable[..., Run]
HERE = "tests.engine.cli.test_own_layers"
BASICS = "tests.engine.cli.lightning_basics"


class BuiltInSetup(Own):
    """Builds its layer when the data is known, as Lightning's documentation shows."""

    def __init__(self) -> None:
        super().__init__()
        del self.net

    def setup(self, stage: str) -> None:
        self.net = nn.Linear(FEATURES, 2)


class Judged(BuiltInSetup):
    """Has one more network in the test."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "test":
            self.judge = nn.Linear(FEATURES, 1)


class Unfrozen(Own):
    """Freezes its layer in the constructor, and unfreezes it in the second epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(FEATURES, FEATURES).requires_grad_(False)
        self.net = nn.Sequential(self.backbone, nn.Linear(FEATURES, 2))  # type: ignore[assignment]

    def on_train_epoch_start(self) -> None:
        self.backbone.requires_grad_(self.current_epoch > 0)


class Lazy(Own):
    """A layer that learns its size from the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.LazyLinear(2)


class Spectral(nn.Module):
    """A layer with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(FEATURES // 2 + 1, dtype=torch.cfloat))
        self.head = nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.fft.irfft(torch.fft.rfft(x.float()) * self.weight, n=FEATURES))
        return found


class Complex(Own):
    """A network with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Spectral()  # type: ignore[assignment]


class Halves(Own):
    """Logs its only validation loss for each step and for the epoch."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, *_ = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("valid_loss", loss, on_step=True, on_epoch=True)


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """None: each test has its own."""
    return ()


@pytest.fixture
def of(tmp_path: Path) -> Callable[..., str]:
    """The option for a recipe of a model only, and data."""

    def option(model: str, data: str | None = f"{BASICS}.NumbersData") -> str:
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump({"model": model, **({"data": data} if data else {})}))
        return f"--config={path}"

    return option


def test_layers_of_the_test_only_stay_as_they_are(train: Train, of: Callable[..., str]) -> None:
    run = train(of(f"{HERE}.Judged"), "--max_epochs=1")
    assert "test_loss" in run.metrics
    assert "judge.weight" in run.cli.model.state_dict()


@pytest.mark.slow
def test_layers_built_in_setup_are_tested_and_continued_with_their_weights(
    train: Train, of: Callable[..., str]
) -> None:
    words = (of(f"{HERE}.BuiltInSetup"), "--precision=32-true")
    trained = train(*words, "--max_epochs=3")
    again = train("test", f"--run={trained.folder}")
    names = [name for name in again.metrics if name.startswith("test")]
    assert names
    assert {name: trained.metrics[name] for name in names} == {name: again.metrics[name] for name in names}
    assert train("fit", f"--run={trained.folder}", "--max_epochs=4").cli.trainer.global_step == 24


@pytest.mark.slow
def test_a_parameter_that_no_optimizer_has_is_named(train: Train, of: Callable[..., str]) -> None:
    run = train("fit", of(f"{HERE}.Unfrozen"), "--optimizer=SGD", "--optimizer.lr=0.1", "--max_epochs=3")
    lines = [line for line in run.messages if "are not in the optimizer" in line]
    assert lines == [
        "2 parameters, such as net.0.weight, are not in the optimizer and stay as they are: freeze them in"
        " on_train_start, not before, or return them in parameter_groups"
    ]
    other = train("fit", of(f"{HERE}.Complex"), "--optimizer=SGD", "--optimizer.lr=0.1", "--max_epochs=1")
    assert not [line for line in other.messages if "are not in the optimizer" in line]


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "MuonWithAdamW"])
def test_complex_weights_are_trained(train: Train, of: Callable[..., str], optimizer: str) -> None:
    words = (of(f"{HERE}.Complex"), f"--optimizer={optimizer}", "--optimizer.lr=0.1", "--max_epochs=1")
    run = train("fit", *words)
    assert not torch.equal(run.weights["net.weight"], torch.ones(FEATURES // 2 + 1, dtype=torch.cfloat))


@pytest.mark.slow
def test_layers_of_unknown_size_are_trained_tested_and_continued(train: Train, of: Callable[..., str]) -> None:
    words = (of(f"{HERE}.Lazy"), "--precision=32-true")
    trained = train(*words, "--max_epochs=1", "--trainer.enable_model_summary=true")
    assert train("test", f"--run={trained.folder}").metrics["test_loss"] == trained.metrics["test_loss"]
    assert train("fit", f"--run={trained.folder}", "--max_epochs=2").cli.trainer.global_step == 12


def test_a_loss_of_steps_and_epochs_is_one_loss(train: Train, of: Callable[..., str]) -> None:
    run = train("fit", of(f"{HERE}.Halves"), "--max_epochs=2")
    assert [line for line in run.messages if "best checkpoint" in line] == [
        "The best checkpoint has the lowest valid_loss, as validation does not log val/loss"
    ]


def test_a_schedule_ends_with_the_run_whatever_steps_are_accumulated(train: Train, of: Callable[..., str]) -> None:
    words = ("fit", of(f"{HERE}.Own"), "--optimizer=SGD", "--optimizer.lr=0.1", "--max_epochs=3")
    words += ("--lr_scheduler=OneCycleLR",)
    accumulation = ("--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling={0: 3, 2: 4}")
    run = train(*words, *accumulation)  # six batches an epoch
    schedule = run.cli.trainer.lr_scheduler_configs[0].scheduler
    assert (schedule.total_steps, run.cli.trainer.global_step) == (6, 6)


def test_a_schedule_over_data_without_length_names_what_gives_it_one(train: Train, of: Callable[..., str]) -> None:
    words = ("fit", of(f"{BASICS}.Agent", data=None), "--optimizer=SGD", "--optimizer.lr=0.1")
    words += ("--lr_scheduler=OneCycleLR", "--max_epochs=2")
    with pytest.raises(InputError, match=r"needs the run's length: give --trainer.max_steps or --trainer.limit_train"):
        train(*words)


class Sized(nn.Module):
    """Has arguments without a type."""

    num_classes = 2

    def __init__(self, features, width: int = 8, note="none") -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.note = note
        self.layers = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class SizesData(NumbersData):
    """Says how many features it has; one argument has no type."""

    def __init__(self, rows) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.rows = rows + 1

    def network_arguments(self) -> dict[str, int]:
        return {"features": FEATURES}


def test_an_argument_without_type_and_value_is_named(parse: Callable[..., StarterCLI], of: Callable[..., str]) -> None:
    words = (of("Classifier"), f"--model.net={HERE}.Sized", "--optimizer=Adam")
    with pytest.raises(InputError, match=r"^Sized needs features: give --model\.net\.features$"):
        parse(*words)
    assert parse(*words, "--model.net.features=3").model.net.layers[0].in_features == 3
    assert parse(*words, "--model.net.features=3", "--model.net.note=null").model.net.note is None
    by_data = (*words, f"--data={HERE}.SizesData")
    with pytest.raises(InputError, match=r"^SizesData needs rows: give --data\.rows$"):
        parse(*by_data)
    assert parse(*by_data, "--data.rows=1").model.net.layers[0].in_features == FEATURES
