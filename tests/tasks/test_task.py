from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, MetricCollection

from src.engine.cli.cli import StarterCLI
from src.engine.system.batches import Sample
from src.engine.system.errors import InputError
from src.engine.tensorboard.task_pictures import TaskPictures
from src.engine.training import deferred_metrics
from src.tasks.classifier import Classifier
from src.tasks.multi_label_classifier import MultiLabelClassifier
from src.tasks.regressor import Regressor
from src.tasks.sequence_labeler import SequenceLabeler
from src.tasks.task import Task
from tests import toy
from tests.conftest import Run, trainer
from tests.tasks.waits import LIMITS, check_that_only_log_steps_wait, waits_by_step

Train = Callable[..., Run]


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """A tiny network and data set."""
    return (f"--config={toy.RECIPE}",)


@pytest.mark.slow
def test_only_log_steps_wait_for_the_device(parse: Callable[..., StarterCLI], monkeypatch: pytest.MonkeyPatch) -> None:
    # Metrics are due between log steps; their update must be deferred.
    monkeypatch.setattr(deferred_metrics, "STEPS_PER_UPDATE", 7)
    check_that_only_log_steps_wait(parse("fit", *LIMITS, "--data.batch_size=10"))


@pytest.mark.slow
def test_a_task_that_reads_its_loss_in_every_step_is_detected(
    parse: Callable[..., StarterCLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Task.training_step
    monkeypatch.setattr(Task, "training_step", lambda *args: (loss := step(*args), loss.item())[0])
    limits = ("--trainer.limit_train_batches=5", "--trainer.limit_val_batches=0", "--max_epochs=1")
    assert all("item" in found for found in waits_by_step(parse("fit", *limits)))


@pytest.mark.slow
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


@pytest.mark.slow
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


class Doubler(Task):
    """A task of one's own that overrides all it may."""

    figure_samples = 5

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, MetricCollection({"loss": MeanMetric()}))
        self.drawn: list[Sample] = []

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        x, y = batch
        loss = (self(x) - y).square().mean()
        return loss, {"value": loss, "weight": len(x)}

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        super().test_step(batch, batch_idx)
        return {"preds": self(batch[0]), "target": batch[1]}

    def log_metrics(self, stage: str) -> None:
        super().log_metrics(stage)
        self.log(f"{stage}/twice", self.metrics[stage]["loss"].compute() * 2)

    def figures(self, samples: list[Sample], labels: list[str]) -> dict[str, Any]:
        self.drawn = samples
        return {"one": Figure()}

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        return {"double": self(*inputs)}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        return [{"double": value} for value in predictions["double"].tolist()]


def test_a_task_of_ones_own_logs_draws_and_predicts_as_it_says(tmp_path: Path) -> None:
    task = Doubler(nn.Linear(1, 1))
    x = torch.arange(8.0)[:, None]
    loader = DataLoader(TensorDataset(x, 2 * x), 3)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    (found,) = trainer(tmp_path, logger=logger, callbacks=[TaskPictures()]).test(task, loader, verbose=False)
    assert found["test/twice"] == pytest.approx(2 * found["test/loss"])
    assert [sample["target"].item() for sample in task.drawn] == [0, 2, 4, 6, 8]
    assert all(sample.keys() == {"target", "preds"} for sample in task.drawn)
    logger.experiment.close()
    events: Any = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["test/one"]
    rows = task.prediction_rows(task.predict_step(x, 0), [])
    assert rows == [{"double": value} for value in task(x).tolist()]


def test_a_batch_that_counts_in_no_process_has_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Doubler(nn.Linear(1, 1))
    task.trainer = trainer(tmp_path)
    monkeypatch.setattr(type(task.trainer), "world_size", 2)
    for rank_1, share in ((0, 0), (3, 0.5)):
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda total, more=rank_1: total.add_(more))
        assert task._share(torch.tensor(rank_1 // 3)) == share


@pytest.mark.filterwarnings("ignore:The ..compute.. method")
@pytest.mark.parametrize("others", [True, False])
def test_all_processes_compute_the_metrics_of_an_epoch_if_one_has_seen_something(
    others: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Doubler(nn.Linear(1, 1))
    task.trainer = trainer(tmp_path)
    logged: list[str] = []
    monkeypatch.setattr(task, "log_dict", lambda values, **_: logged.extend(values))
    monkeypatch.setattr("src.tasks.task.gathered", lambda seen: [seen, others])
    task.on_train_epoch_end()
    assert logged == ["train/loss"] * others


@pytest.mark.parametrize("name", ["vocab_size", "block_size"])
@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")
def test_data_that_the_network_is_too_small_for_is_one_line(tmp_path: Path, name: str) -> None:
    net, data = nn.Linear(1, 1), LightningDataModule()
    setattr(net, name, 10)
    setattr(data, name, 11)
    data.train_dataloader = lambda: DataLoader(TensorDataset(torch.ones(2, 1), torch.ones(2, 1)))  # type: ignore[method-assign]
    with pytest.raises(InputError, match=f"{name} 11 of the data does not fit Linear, which has {name} 10"):
        trainer(tmp_path, max_epochs=1).fit(Doubler(net), data)


class TwoInputs(nn.Module):
    """Takes two inputs."""

    num_classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.layer(x * scale)


X, Y = torch.zeros(4, 3), torch.zeros(4)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": X, "y": Y}, "a batch of the DataLoader is a dict with x, y: {} takes a tuple of tensors"),
        (X, r"a batch of the DataLoader is a tensor \(4, 3\): {} takes"),
        ((X, X, Y[0]), r"a tensor \(4, 3\), a tensor \(\): {} takes"),
        (((X, X), Y), "TwoInputs.forward does not take .* a list: missing a required argument: 'scale'; see docs"),
        ((X, X, X, Y), r"TwoInputs.forward does not take .* \(4, 3\): too many positional arguments; see docs"),
    ],
)
@pytest.mark.parametrize("task", [Classifier, MultiLabelClassifier, Regressor, SequenceLabeler])
def test_batches_of_another_form_are_an_error(task: Any, batch: Any, message: str, tmp_path: Path) -> None:
    loader = DataLoader([batch], batch_size=None)
    with pytest.raises(InputError, match=message.format(task.__name__)):
        trainer(tmp_path).validate(task(TwoInputs()), loader)


@pytest.mark.parametrize("targets", [torch.zeros(4, 1), torch.ones(4, 2)])
def test_one_hot_targets_and_a_dimension_too_many_are_an_error(targets: Tensor, tmp_path: Path) -> None:
    loader = DataLoader([(X, X, targets.long())], batch_size=None)
    with pytest.raises(InputError, match=r"takes one class number per input, \(4,\): give targets.squeeze\(1\), or"):
        trainer(tmp_path).validate(Classifier(TwoInputs()), loader)
