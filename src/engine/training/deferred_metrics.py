"""Metrics that are updated once for many steps."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

# Nearly all the time of an update is overhead per call: a tenth of a training step for a small network.
STEPS_PER_UPDATE = 50
STAGES = ("train", "val", "test")


class DeferredMetrics(nn.Module):
    """Separate metrics for the stages train, val and test, each updated with many steps at once.

    Args:
        metrics: copied for each stage and logged under `train/`, `val/` and `test/`.
        unlogged: metrics of validation and test that are not a single number, such as a confusion matrix.
    """

    def __init__(self, metrics: MetricCollection, unlogged: MetricCollection | None = None) -> None:
        super().__init__()
        self.logged = nn.ModuleDict({f"{stage}_metrics": metrics.clone(prefix=f"{stage}/") for stage in STAGES})
        self.unlogged = MetricCollection({}) if unlogged is None else unlogged
        self._pending: dict[str, list[dict[str, Any]]] = {stage: [] for stage in STAGES}

    def __getitem__(self, stage: str) -> MetricCollection:
        """The metrics of a stage, updated with all pending steps."""
        self._update(stage)
        found: Any = self.logged[f"{stage}_metrics"]
        metrics: MetricCollection = found
        return metrics

    def add(self, stage: str, seen: dict[str, Any], may_wait: bool = True) -> None:
        """Keep the values of a step for the next update.

        Args:
            stage: `train`, `val` or `test`.
            seen: arguments of the metrics' `update`: detached tensors, or numbers.
            may_wait: whether the metrics may be updated now, which may wait for the device.
        """
        self._pending[stage].append(seen)
        if may_wait and len(self._pending[stage]) >= STEPS_PER_UPDATE:
            self._update(stage)

    def reset(self) -> None:
        """Reset all metrics and drop pending steps."""
        for stage in STAGES:
            self._pending[stage] = []
            self[stage].reset()
        self.unlogged.reset()

    def has_seen(self, stage: str) -> bool:
        """Whether the metrics of a stage have been updated."""
        return any(metric.update_called for metric in self[stage].values())

    def state(self) -> dict[str, Any]:
        """Training metrics and pending steps of this process, as tensors and plain values."""
        metrics = self._train_metrics()
        seen = {name: (metric.metric_state, metric.update_count) for name, metric in metrics.items()}
        return {"seen": seen, "waiting": self._pending["train"]}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Add the `state()` of a process to the training metrics."""
        self._pending["train"] += state["waiting"]
        metrics = self._train_metrics()
        for name, (values, updates) in state["seen"].items():
            metric = metrics[name]
            if updates and metric.update_called:
                metric.merge_state(values)
            elif updates:
                for key, value in values.items():
                    setattr(metric, key, value.to(device) if isinstance(value, Tensor) else value)
            metric._update_count += updates

    def _train_metrics(self) -> dict[str, Any]:
        metrics: Any = self.logged["train_metrics"]
        return dict(metrics.items(keep_base=True, copy_state=False))

    def _update(self, stage: str) -> None:
        pending, self._pending[stage] = self._pending[stage], []
        if not pending:
            return
        metrics = self[stage]
        device = next(iter(metrics.values())).device
        joined = {name: _join([seen[name] for seen in pending], device) for name in pending[0]}
        metrics.update(**joined)
        if stage != "train":
            self.unlogged.update(**joined)


def _join(values: list[Any], device: torch.device) -> Tensor:
    """Concatenate the values of several steps along dimension 0."""
    if isinstance(values[0], Tensor):
        return torch.cat([(value if value.ndim else value.reshape(1)).to(device) for value in values])
    return torch.tensor(values, device=device)
