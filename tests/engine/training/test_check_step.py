"""What a task's `step` returns is checked once, and a mistake is one line."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MeanSquaredError, Metric, MetricCollection, SumMetric
from torchmetrics.classification import MulticlassAccuracy

from src.engine.system.errors import InputError
from src.engine.training.deferred_metrics import DeferredMetrics, check_step
from src.tasks.task import Task
from tests.conftest import trainer

LOSS = torch.tensor(0.5)
GOOD = {"preds": torch.zeros(4, 3), "target": torch.zeros(4, 3), "value": LOSS, "weight": 4}


def metrics() -> DeferredMetrics:
    return DeferredMetrics(MetricCollection({"loss": MeanMetric(), "mse": MeanSquaredError()}))


MISTAKES = [
    (LOSS, r"MyTask.step returns float32 \(\): return the loss and a dict"),
    ({"loss": LOSS}, r"returns dict: return the loss and a dict"),
    (torch.zeros(4), r"returns float32 \(4,\): return the loss and a dict"),
    ((LOSS, GOOD, 1), r"returns \(float32 \(\), dict, int\): return the loss and a dict"),
    ((0.5, GOOD), r"returns the loss float: give one number"),
    ((torch.zeros(4), GOOD), r"returns the loss float32 \(4,\): give one number, as loss.mean\(\) or reduction=mean"),
    ((LOSS, [1]), r"returns \(float32 \(\), list\): return the loss and a dict"),
    ((LOSS, {"value": LOSS}), r"gives value: add weight, the number of samples in the loss"),
    ((LOSS, {}), r"gives nothing: add weight"),
    (
        (LOSS, {"value": LOSS, "weight": 4}),
        r"gives value float32 \(\), weight int, which metric mse does not take: .* 2 required .* 'preds' and 'target'",
    ),
    ((LOSS, {**GOOD, "logits": LOSS}), r"gives logits, which no metric takes: they take preds, target, value, weight"),
    (
        (LOSS, {**GOOD, "target": torch.zeros(4)}),
        r"preds float32 \(4, 3\), target float32 \(4,\), .* which metric mse does not take: Predictions and targets .*"
        r"same shape",
    ),
    ((LOSS, {**GOOD, "preds": "a"}), r"preds str, .* which metric loss does not take: too many dimensions"),
]


@pytest.mark.parametrize(("result", "message"), MISTAKES)
def test_a_mistake_is_one_line_that_says_what_came_and_what_is_expected(result: Any, message: str) -> None:
    check_step("MyTask", (LOSS, GOOD), metrics())
    with pytest.raises(InputError, match=message) as raised:
        check_step("MyTask", result, metrics())
    assert "\n" not in str(raised.value)


def test_checking_changes_no_metric() -> None:
    found = metrics()
    check_step("MyTask", (LOSS, GOOD), found)
    assert not found.has_seen("train")
    found.add("train", GOOD)
    assert found["train"].compute()["train/loss"] == 0.5


def test_unlogged_metrics_are_checked_too() -> None:
    unlogged = MetricCollection({"acc": MulticlassAccuracy(3)})
    with pytest.raises(InputError, match=r"metric acc does not take: .*missing 2 required"):
        check_step("MyTask", (LOSS, {"value": LOSS, "weight": 4}), DeferredMetrics(MetricCollection([]), unlogged))


class Shapes(Metric):
    """Keeps the shapes that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", torch.tensor(0), "sum")
        self.shapes: list[tuple[int, ...]] = []

    def update(self, boxes: Tensor) -> None:
        self.rows += len(boxes)
        self.shapes.append(tuple(boxes.shape))

    def compute(self) -> Tensor:
        return self.rows


class Boxes(Task):
    """A task whose predictions have three dimensions, with a graph."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), MetricCollection({"boxes": Shapes(), "sum": SumMetric()}))

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        boxes = self(batch[0])
        return boxes.mean(), {"boxes": boxes, "value": boxes.sum(), "weight": len(boxes)}


def test_what_step_gives_is_joined_along_the_first_dimension_and_keeps_its_shape(tmp_path: Any) -> None:
    batches = [(torch.zeros(size, count, 4),) for size, count in ((2, 3), (1, 3), (2, 5), (2, 3))]
    task = Boxes()
    run = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    run.fit(task, loader, loader)
    shapes: Any = task.metrics.logged["val_metrics"]["boxes"]  # type: ignore[index]
    assert shapes.shapes == [(3, 3, 4), (2, 5, 4), (2, 3, 4)]
    assert run.callback_metrics["val/boxes"] == run.callback_metrics["train/boxes"] == 7


def test_the_graph_of_a_step_is_not_kept(tmp_path: Any) -> None:
    task = Boxes()
    _, seen = task.check(task.step((torch.zeros(2, 3, 4),)))
    task.metrics.add("train", seen, may_wait=False)
    assert seen["boxes"].requires_grad
    assert not task.metrics.state()["waiting"][0]["boxes"].requires_grad


def test_a_task_without_step_or_rows_says_which_method_it_lacks() -> None:
    task = Task(nn.Linear(2, 1), MetricCollection([]))
    with pytest.raises(InputError, match=r"Task has no method step: .* see docs/your_own\.md"):
        task.step(())
    assert task.predictions(torch.ones(3, 2))["output"].shape == (3, 1)
    with pytest.raises(
        InputError, match=r"Task does not say how to write .* a method prediction_rows; see docs/your_own\.md"
    ):
        task.prediction_rows({}, [])
