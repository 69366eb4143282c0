from argparse import ArgumentError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassRecall

from src.engine.runs.checkpoint import restore_data
from src.engine.system.errors import InputError
from src.tasks.classifier import Classifier, WeightedCrossEntropy, check_classes
from tests.conftest import trainer
from tests.toy import CLASSES, SIDE, ToyMLP, ToyNet


def batches(size: int, *, count: int = 20) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 1, SIDE, SIDE, generator=generator)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    return DataLoader(TensorDataset(images, targets), batch_size=size)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_training_on_one_batch_lowers_the_loss(loss: nn.Module) -> None:
    torch.manual_seed(0)
    task = Classifier(net=ToyNet(), loss=loss)
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    batch = next(iter(batches(20)))
    losses = []
    for _ in range(20):
        value, _ = task.step((batch[0], batch[1]))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0] / 2


def test_metrics_equal_a_manual_computation(tmp_path: Path) -> None:
    task = Classifier(net=ToyMLP())
    loader = batches(7)  # 20 samples in batches of 7, 7 and 6: a mean of batch means would be wrong
    run = trainer(tmp_path)
    for _ in range(2):  # the second test must not include the first
        (found,) = run.test(task, loader, verbose=False)

    images, targets = loader.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = task(images)
    labels = logits.argmax(dim=1)
    scores = []
    for label in range(CLASSES):
        hits = ((labels == label) & (targets == label)).sum().item()
        wrong = ((labels == label) ^ (targets == label)).sum().item()
        if hits + wrong:
            scores.append(2 * hits / (2 * hits + wrong))
    assert found["test/acc"] == pytest.approx((labels == targets).float().mean().item())
    assert found["test/f1"] == pytest.approx(sum(scores) / len(scores))
    assert found["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)
    counts = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    for target, label in zip(targets, labels, strict=True):
        counts[target, label] += 1
    assert torch.equal(task.confusion.compute(), counts)


@pytest.mark.slow
def test_a_weighted_loss_is_averaged_over_the_weights_of_all_samples(tmp_path: Path) -> None:
    weights = [1.0, 4.0, 0.5]
    task = Classifier(net=ToyMLP(), loss=WeightedCrossEntropy(weights))
    loader = batches(7)
    (found,) = trainer(tmp_path).test(task, loader, verbose=False)
    images, targets = loader.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = nn.functional.cross_entropy(task(images), targets, torch.tensor(weights))
    assert found["test/loss"] == pytest.approx(expected.item(), rel=1e-5)
    ignored = torch.tensor([0, 1, -100, 1])
    assert task.count(ignored) == 9.0


def test_class_weights_are_those_of_the_arguments_and_not_of_a_checkpoint() -> None:
    saved = Classifier(net=ToyMLP(), loss=WeightedCrossEntropy([1.0, 4.0, 0.5])).state_dict()
    task = Classifier(net=ToyMLP(), loss=WeightedCrossEntropy([1.0, 1.0, 9.0]))
    assert saved["loss.weight"].tolist() == [1.0, 4.0, 0.5]
    task.load_state_dict(saved)
    assert task.loss.weight.tolist() == [1.0, 1.0, 9.0]  # type: ignore[operator, union-attr]
    assert torch.equal(task.net.layers[1].weight, saved["net.layers.1.weight"])
    assert saved["loss.weight"].tolist() == [1.0, 4.0, 0.5]


class OwnStep(Classifier):
    """A classifier whose loss has one more term, and whose step may not use the base class."""

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        loss, seen = super().step(batch)
        return loss + 10, {**seen, "value": seen["value"] + 10}


class WholeStep(Classifier):
    """A classifier with a step of its own."""

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        preds = self(batch[0]).argmax(dim=1)
        return loss, {"preds": preds, "target": batch[1], "value": loss.detach(), "weight": len(preds)}


def test_a_step_of_ones_own_is_used_in_validation_and_test_too(tmp_path: Path) -> None:
    net, loader = ToyMLP(), batches(7)
    plain, more, whole = (
        trainer(tmp_path).test(task(net=net), loader, verbose=False)[0] for task in (Classifier, OwnStep, WholeStep)
    )
    assert more["test/loss"] == pytest.approx(plain["test/loss"] + 10, rel=1e-5)
    assert whole == pytest.approx(plain, rel=1e-5)
    images, targets = next(iter(loader))
    returned = WholeStep(net=net).test_step((images, targets), 0)
    assert torch.equal(returned["logits"], net(images))


def test_the_loss_is_the_mean_over_the_samples_whose_class_is_known(tmp_path: Path) -> None:
    task = Classifier(net=ToyMLP())
    images, targets = batches(7).dataset.tensors  # type: ignore[attr-defined]
    targets[0] = -100
    targets[8:] = -100
    loader = DataLoader(TensorDataset(images, targets), batch_size=4)
    (found,) = trainer(tmp_path).test(task, loader, verbose=False)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(task(images), targets)
    assert found["test/loss"] == pytest.approx(expected.item(), rel=1e-5)
    loss, _ = task.step((images[8:], targets[8:]))
    loss.backward()
    assert loss == 0
    assert not any(value.grad.any() for value in task.parameters() if value.grad is not None)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], "give 3 numbers, one per class"),
        ([1.0, 0.0, 2.0], "give numbers above 0"),
        ([1.0, -1.0, 2.0], "above 0"),
    ],
)
def test_class_weights_must_fit_the_classes(weights: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Classifier(net=ToyMLP(), loss=WeightedCrossEntropy(weights))


def test_mean_squared_error_uses_one_hot_targets(tmp_path: Path) -> None:
    task = Classifier(net=ToyMLP(), loss=nn.MSELoss())
    loader = batches(20)
    (found,) = trainer(tmp_path).test(task, loader, verbose=False)
    images, targets = loader.dataset.tensors  # type: ignore[attr-defined]
    expected = (task(images) - torch.eye(CLASSES)[targets]).square().mean().item()
    assert found["test/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCEWithLogitsLoss(), nn.MSELoss(reduction="sum")])
def test_a_loss_on_one_hot_targets_leaves_out_unknown_ones(loss: nn.Module) -> None:
    task = Classifier(net=ToyMLP(), loss=loss).eval()
    images, targets = next(iter(batches(20)))
    part = targets.clone()
    part[::2] = -100
    found, seen = task.step((images, part))
    assert torch.allclose(found, task.step((images[1::2], targets[1::2]))[0])
    assert seen["weight"] == len(targets) // 2
    assert task.step((images, torch.full_like(targets, -100)))[0] == 0


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_probabilities_fit_a_loss_on_one_hot_targets(loss: nn.Module) -> None:
    task = Classifier(net=ToyMLP(), loss=loss)
    right = [0.0, 1.0, 0.0] if isinstance(loss, nn.MSELoss) else [-40.0, 40.0, -40.0]
    found = task.probabilities(torch.tensor([right, [-3.0, -2.0, -1.0]]))
    assert found[0].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert found.sum(dim=1).tolist() == pytest.approx([1, 1])
    assert found[1].argmax() == 2


class SmoothedClassifier(Classifier):
    """A classifier with another default loss and one more metric."""

    def configure_loss(self) -> nn.Module:
        return nn.CrossEntropyLoss(label_smoothing=0.5)

    def configure_metrics(self, num_classes: int) -> MetricCollection:
        metrics = super().configure_metrics(num_classes)
        metrics.add_metrics({"recall": MulticlassRecall(num_classes, average="macro")})
        return metrics


def test_a_subclass_can_replace_loss_and_metrics(tmp_path: Path) -> None:
    task = SmoothedClassifier(net=ToyMLP())
    loader = batches(20)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    run.fit(task, loader, loader)
    assert {"train/recall", "val/recall"} <= run.callback_metrics.keys()
    (found,) = run.test(task, loader, verbose=False)
    images, targets = loader.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = task(images)
    expected = nn.functional.cross_entropy(logits, targets, label_smoothing=0.5).item()
    assert found["test/loss"] == pytest.approx(expected, rel=1e-5)
    hits = [(logits.argmax(1)[targets == label] == label).float().mean().item() for label in range(CLASSES)]
    assert found["test/recall"] == pytest.approx(sum(hits) / CLASSES)
    assert SmoothedClassifier(net=ToyMLP(), loss=nn.MSELoss()).loss.__class__ is nn.MSELoss


def test_predictions_are_labels_and_probabilities() -> None:
    task = Classifier(net=ToyNet()).eval()
    images = torch.randn(6, 1, SIDE, SIDE)
    predicted = task.predict_step((images, torch.zeros(6)), 0)
    assert predicted["probabilities"].shape == (6, CLASSES)
    assert torch.allclose(predicted["probabilities"].sum(dim=1), torch.ones(6))
    assert torch.equal(predicted["labels"], task(images).argmax(dim=1))
    assert torch.equal(predicted["labels"], task.predict_step(images, 0)["labels"])


def test_num_classes_must_be_known_and_match_the_network() -> None:
    with pytest.raises(InputError, match="Sequential has no attribute num_classes: pass num_classes to Classifier"):
        Classifier(net=nn.Sequential())
    with pytest.raises(InputError, match="num_classes 4 does not fit ToyMLP, which has 3"):
        Classifier(net=ToyMLP(), num_classes=4)
    assert Classifier(net=nn.Sequential(), num_classes=4).num_classes == 4


def test_a_loss_with_more_than_one_value_is_an_error() -> None:
    task = Classifier(net=ToyMLP(), loss=nn.CrossEntropyLoss(reduction="none"))
    images, targets = next(iter(batches(20)))
    with pytest.raises(
        InputError, match=r"step returns the loss float32 \(20,\): give one number, as .*reduction=mean"
    ):
        task.check(task.step((images, targets)))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            torch.ones(20),
            r"targets are torch.float32, Classifier takes class numbers, int64: convert them, or use another task",
        ),
        (torch.ones(20, dtype=torch.int32), r"targets are torch.int32, Classifier takes class numbers, int64"),
        (torch.full((20,), CLASSES), r"target 3 does not fit Classifier: give 0 to 2, or -100 to leave it out"),
        (torch.full((20,), -1), r"target -1 does not fit Classifier"),
        (
            torch.zeros(20, 1, dtype=torch.int64),
            r"targets have the shape \(20, 1\): Classifier takes one class number per input",
        ),
    ],
)
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()])
def test_targets_that_are_no_class_numbers_are_one_line(loss: nn.Module, targets: Tensor, message: str) -> None:
    images, _ = next(iter(batches(20)))
    with pytest.raises(InputError, match=message):
        Classifier(net=ToyMLP(), loss=loss).step((images, targets))


@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")
def test_a_checkpoint_rebuilds_a_task_built_in_python(tmp_path: Path) -> None:
    task = Classifier(net=ToyNet(width=4, dropout=0.25), loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(task, batches(10))
    path = tmp_path / "task.ckpt"
    fit.save_checkpoint(path)
    torch.load(path, weights_only=True)  # fails unless it holds only tensors and plain values
    loaded = Classifier.load_from_checkpoint(path, weights_only=True).eval()
    assert (loaded.net.width, loaded.net.dropout, loaded.loss.label_smoothing) == (4, 0.25, 0.1)
    images = torch.ones(2, 1, SIDE, SIDE)
    assert torch.equal(loaded(images), task.eval()(images))


class NetWithoutAttributes(nn.Module):
    """A network that does not store its argument, so a checkpoint cannot rebuild it."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        width = SIDE * SIDE
        self.layers = nn.Sequential(nn.Flatten(), *(nn.Linear(width, width) for _ in range(depth - 1)))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x))
        return logits


@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")
def test_a_network_that_a_checkpoint_cannot_rebuild_can_be_passed(tmp_path: Path) -> None:
    task = Classifier(net=NetWithoutAttributes(depth=3), num_classes=CLASSES)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(task, batches(10))
    fit.save_checkpoint(tmp_path / "task.ckpt")
    with pytest.raises(ArgumentError, match=r"arguments are required: module\.net"):
        Classifier.load_from_checkpoint(tmp_path / "task.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "task.ckpt", net=NetWithoutAttributes(depth=3))
    assert torch.equal(loaded.net.head.weight, task.net.head.weight)


@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")
def test_a_class_that_no_other_program_finds_loads_from_its_checkpoint(tmp_path: Path) -> None:
    class Mine(Classifier):
        """As in a script or a notebook."""

    task = Mine(ToyMLP())
    assert "_class_path" not in task.hparams
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(task, batches(10))
    fit.save_checkpoint(tmp_path / "task.ckpt")
    for given in ({}, {"net": ToyMLP()}):
        loaded = Mine.load_from_checkpoint(tmp_path / "task.ckpt", weights_only=True, **given)
        assert torch.equal(loaded.net.state_dict()["layers.1.weight"], task.net.state_dict()["layers.1.weight"])


@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")
@pytest.mark.filterwarnings("ignore:.max_epochs. was not set")
def test_only_one_number_leaves_targets_out(tmp_path: Path) -> None:
    task = Classifier(nn.Linear(2, 3), nn.CrossEntropyLoss(ignore_index=255), num_classes=3)
    with pytest.raises(InputError, match=r"^ignore_index 255: only targets of -100 are ignored: remove"):
        trainer(tmp_path).fit(task, batches(4))


def test_labels_may_be_an_array(tmp_path: Path) -> None:
    task = Classifier(nn.Linear(2, 3), num_classes=3)
    for labels in (np.array(["a", "b", "c"]), np.arange(3), torch.arange(3)):
        data: Any = SimpleNamespace(labels=labels, hparams={})
        task.trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
        assert task.label_names(3) == [str(one) for one in labels.tolist()]
        restore_data({}, data)


def test_a_network_that_averages_probabilities_does_not_go_with_a_loss_on_one_hot_targets() -> None:
    class Averaging(ToyMLP):
        average = "probabilities"

    assert Classifier(Averaging()).net
    assert Classifier(nn.Linear(2, 1), nn.MSELoss(), num_classes=1).net
    with pytest.raises(
        InputError, match=r"^Averaging averages softmax probabilities, .*: give --model\.net\.average logits$"
    ):
        Classifier(Averaging(), nn.MSELoss())
    Averaging.average = "logits"
    assert Classifier(Averaging(), nn.MSELoss()).net


def test_many_classes_take_little_memory(tmp_path: Path) -> None:
    task = Classifier(nn.Linear(4, 2000), num_classes=2000)
    states = [value for one in task.metrics.modules() if isinstance(one, Metric) for value in one._defaults.values()]
    assert sum(value.nbytes for value in states if isinstance(value, Tensor)) < 10e6
    data = DataLoader(TensorDataset(torch.randn(8, 4), torch.arange(8)), 4)
    trainer(tmp_path, max_epochs=1).fit(task, data, data)


@pytest.mark.parametrize(
    ("path", "way"), [(None, "leave num_classes out, or give 5"), ("x.ckpt", "give data with the")]
)
def test_a_checkpoint_keeps_its_classes(path: str | None, way: str) -> None:
    task = Classifier(nn.Linear(4, 3), num_classes=3)
    task._trainer = SimpleNamespace(datamodule=SimpleNamespace(num_classes=5), ckpt_path=path)  # type: ignore[assignment]
    with pytest.raises(InputError, match=f"^the data has 5 classes and Linear 3: {way}"):
        check_classes(task, 3)
