"""Metrics that take the predictions of many steps at once."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

# Nearly all of an update's cost is paid per call: for a small network it is a tenth of a training step.
STEPS_PER_UPDATE = 50
STAGES = ("train", "val", "test")


class DeferredMetrics(nn.Module):
    """A copy of some metrics for each of the stages train, val and test.

    Args:
        metrics: a copy each is logged under `train/`, `val/` and `test/`.
        unlogged: metrics of validation and test that are more than a number, such as a confusion matrix.
    """

    def __init__(self, metrics: MetricCollection, unlogged: MetricCollection | None = None) -> None:
        super().__init__()
        self.logged = nn.ModuleDict({f"{stage}_metrics": metrics.clone(prefix=f"{stage}/") for stage in STAGES})
        self.unlogged = MetricCollection({}) if unlogged is None else unlogged
        self._waiting: dict[str, list[dict[str, Any]]] = {stage: [] for stage in STAGES}

    def __getitem__(self, stage: str) -> MetricCollection:
        """The metrics of a stage, after all that waited."""
        self._take(stage)
        found: Any = self.logged[f"{stage}_metrics"]
        metrics: MetricCollection = found
        return metrics

    def add(self, stage: str, seen: dict[str, Any], may_wait: bool = True) -> None:
        """Keep what a step gave, for the metrics to take later.

        Args:
            stage: `train`, `val` or `test`.
            seen: arguments of the metrics' `update`: detached tensors, or numbers.
            may_wait: whether the program may wait for the device now.
        """
        self._waiting[stage].append(seen)
        if may_wait and len(self._waiting[stage]) >= STEPS_PER_UPDATE:
            self._take(stage)

    def reset(self) -> None:
        """Forget everything."""
        for stage in STAGES:
            self._waiting[stage] = []
            self[stage].reset()
        self.unlogged.reset()

    def has_seen(self, stage: str) -> bool:
        """Whether there is anything to compute."""
        return any(metric.update_called for metric in self[stage].values())

    def state(self) -> dict[str, Any]:
        """What this process has seen of an epoch of training, as tensors and plain values."""
        metrics = self._training()
        seen = {name: (metric.metric_state, metric.update_count) for name, metric in metrics.items()}
        return {"seen": seen, "waiting": self._waiting["train"]}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Add what a process had seen of an epoch of training."""
        self._waiting["train"] += state["waiting"]
        metrics = self._training()
        for name, (values, updates) in state["seen"].items():
            metric = metrics[name]
            if updates and metric.update_called:
                metric.merge_state(values)
            elif updates:
                for key, value in values.items():
                    setattr(metric, key, value.to(device) if isinstance(value, Tensor) else value)
            metric._update_count += updates

    def _training(self) -> dict[str, Any]:
        metrics: Any = self.logged["train_metrics"]
        return dict(metrics.items(keep_base=True, copy_state=False))

    def _take(self, stage: str) -> None:
        waiting, self._waiting[stage] = self._waiting[stage], []
        if not waiting:
            return
        metrics = self[stage]
        device = next(iter(metrics.values())).device
        joined = {name: _join([seen[name] for seen in waiting], device) for name in waiting[0]}
        metrics.update(**joined)
        if stage != "train":
            self.unlogged.update(**joined)


def _join(values: list[Any], device: torch.device) -> Tensor:
    """The values of several steps, along dimension 0."""
    if isinstance(values[0], Tensor):
        return torch.cat([(value if value.ndim else value.reshape(1)).to(device) for value in values])
    return torch.tensor(values, device=device)
