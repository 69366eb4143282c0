"""Metrics that take the predictions of many steps at once."""

from typing import Any

import pytest
import torch
from torchmetrics import MeanMetric, Metric, MetricCollection, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from src.engine.training import deferred_metrics
from src.engine.training.deferred_metrics import DeferredMetrics


def metrics() -> DeferredMetrics:
    confusion = MetricCollection({"confusion": MulticlassConfusionMatrix(3)})
    return DeferredMetrics(MetricCollection({"acc": MulticlassAccuracy(3, average="micro")}), confusion)


def steps(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Predictions and targets of some steps of five samples."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count, 2, 5), generator=generator)
    return [{"preds": preds, "target": target} for preds, target in labels]


class Total(Metric):
    """A sum that is updated in place."""

    sums: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(1), dist_reduce_fx="sum")

    def update(self, value: torch.Tensor) -> None:
        self.sums += value.sum()

    def compute(self) -> torch.Tensor:
        return self.sums


def accuracy(seen: list[dict[str, Any]]) -> float:
    return torch.stack([step["preds"] == step["target"] for step in seen]).float().mean().item()


@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_the_value_is_that_of_all_steps_together(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred_metrics, "STEPS_PER_UPDATE", at_once)
    found = metrics()
    for seen in steps(8):
        found.add("train", seen)
    assert found["train"].compute() == {"train/acc": pytest.approx(accuracy(steps(8)))}
    assert not found.has_seen("val")


def test_metrics_are_not_updated_while_the_program_may_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred_metrics, "STEPS_PER_UPDATE", 3)
    taken = []

    class Noted(SumMetric):
        def update(self, value: torch.Tensor) -> None:
            taken.append(value.tolist())
            super().update(value)

    found = DeferredMetrics(MetricCollection({"sum": Noted()}))
    for number in range(5):
        found.add("train", {"value": torch.tensor(float(number))}, may_wait=False)
    assert taken == []
    found.add("train", {"value": torch.tensor(5.0)})
    assert taken == [[0, 1, 2, 3, 4, 5]]
    found.add("train", {"value": torch.tensor(6.0)})
    assert len(taken) == 1  # one is too few for an update
    assert found["train"].compute() == {"train/sum": 21}


def test_many_predictions_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred_metrics, "MAX_PENDING", 25)  # 10 values per step
    found = metrics()
    for number, seen in enumerate(steps(5), start=1):
        found.add("train", seen, may_wait=False)
        assert len(found.state()["waiting"]) == number % 3
    assert found["train"].compute() == {"train/acc": pytest.approx(accuracy(steps(5)))}


def test_numbers_are_accepted_like_tensors() -> None:
    found = DeferredMetrics(MetricCollection({"sum": SumMetric()}))
    for number in (1, 2, 3):
        found.add("val", {"value": number})
    assert found["val"].compute() == {"val/sum": 6}


def test_unlogged_metrics_see_validation_and_test_but_not_training() -> None:
    found = metrics()
    for stage in ("train", "val", "test"):
        found.add(stage, steps(1)[0])
        found.has_seen(stage)
        assert found.unlogged["confusion"].update_count == {"train": 0, "val": 1, "test": 2}[stage]
    assert found.unlogged["confusion"].compute().sum() == 10


def test_a_reset_forgets_everything() -> None:
    found = metrics()
    for stage in ("train", "val"):
        found.add(stage, steps(1)[0])
        assert found.has_seen(stage)
        found.add(stage, steps(1)[0])
    found.reset()
    assert not any(found.has_seen(stage) for stage in ("train", "val", "test"))
    assert not found.unlogged["confusion"].update_called


@pytest.mark.parametrize("at_once", [2, 50])
@pytest.mark.parametrize("processes", [1, 3])
def test_half_an_epoch_resumes_from_the_states_of_all_processes(
    processes: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred_metrics, "STEPS_PER_UPDATE", at_once)
    seen = steps(9)
    saved = []
    for rank in range(processes):
        half = metrics()
        for one in seen[rank:6:processes]:
            half.add("train", one)
        saved.append(half.state())
    found = metrics()
    for state in saved:
        found.load(state)
    for one in seen[6:]:
        found.add("train", one)
    assert found["train"].compute() == {"train/acc": pytest.approx(accuracy(seen))}


def test_the_state_can_be_saved_as_plain_values(tmp_path: Any) -> None:
    found = metrics()
    for seen in steps(3):
        found.add("train", seen)
    torch.save(found.state(), tmp_path / "state.pt")
    again = metrics()
    again.load(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again["train"].compute() == found["train"].compute()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_metrics_stay_in_float32_where_the_network_is_in_half_precision(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred_metrics, "STEPS_PER_UPDATE", 1)
    unlogged = MetricCollection({"sum": SumMetric()})
    task = torch.nn.ModuleDict({"metrics": DeferredMetrics(MetricCollection({"loss": MeanMetric()}), unlogged)})
    task.to(dtype)
    found: Any = task["metrics"]
    assert found.unlogged["sum"].sum_value.dtype == torch.float32
    for number in range(600):  # in bfloat16 a sum of ones ends at 256
        found.add("train", {"value": torch.tensor(float(number % 2), dtype=dtype), "weight": 1})
    assert found["train"].compute() == {"train/loss": 0.5}


def test_a_loss_that_is_not_a_number_is_seen_in_the_mean() -> None:
    found = DeferredMetrics(MetricCollection({"loss": MeanMetric()}))
    for number in (1.0, torch.nan, 3.0):
        found.add("val", {"value": torch.tensor(number), "weight": 2})
    assert found["val"].compute()["val/loss"].isnan()


def test_two_metrics_whose_saved_states_are_one_tensor_count_later_steps_once() -> None:
    saved, found = (DeferredMetrics(MetricCollection({"a": Total(), "b": Total()})) for _ in range(2))
    saved.add("train", {"value": torch.tensor(1.0)})
    saved["train"].compute()
    state = saved.state()
    found.load(state)
    for number in (10.0, 100.0):
        found.add("train", {"value": torch.tensor(number)})
        found.has_seen("train")
    assert found["train"].compute() == {"train/a": 111, "train/b": 111}
    assert state["seen"]["a"][0]["sums"] == 1


def test_where_a_device_counts_slowly_the_cpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred_metrics, "COUNT_ON_CPU", ("meta",))
    found = torch.nn.ModuleList([torch.nn.Linear(2, 2), metrics()]).to("meta")[1]
    assert isinstance(found, DeferredMetrics)
    for seen in steps(3):
        found.add("val", seen)
    assert found["val"].compute() == {"val/acc": pytest.approx(accuracy(steps(3)))}
