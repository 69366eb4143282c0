"""Metrics that are updated once for many steps."""

import inspect
import math
from copy import deepcopy
from itertools import groupby
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection

from src.engine.system.errors import InputError
from src.engine.system.randomness import counting

# Nearly all the time of an update is overhead per call: a tenth of a training step for a small network.
STEPS_PER_UPDATE = 50
STAGES = ("train", "val", "test")
COUNT_ON_CPU = ("mps",)  # there torchmetrics counts without `torch.bincount`, which takes gigabytes
MAX_PENDING = 2**22  # values of pending steps: a prediction for each pixel would fill memory and checkpoints


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
        for one in self.modules():
            if isinstance(one, MeanMetric) and one.nan_strategy == "warn":
                one.nan_strategy = math.nan  # a loss that is not a number is seen

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if fn(torch.empty(0)).device.type in COUNT_ON_CPU:
            return self
        found = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for one in self.modules():  # in half precision sums would stop growing
            if isinstance(one, Metric) and one.dtype in (torch.float16, torch.bfloat16):
                one.to(torch.float32)
        return found

    def __getitem__(self, stage: str) -> MetricCollection:
        """The metrics of a stage, updated with all pending steps."""
        self._update(stage)
        return self.logged[f"{stage}_metrics"]  # type: ignore[return-value]

    def add(self, stage: str, seen: dict[str, Any], may_wait: bool = True) -> None:
        """Keep the values of a step for the next update.

        Args:
            stage: `train`, `val` or `test`.
            seen: arguments of the metrics' `update`: tensors (N, ...), or numbers.
            may_wait: whether the metrics may be updated now, which may wait for the device.
        """
        pending = self._pending[stage]
        pending.append({name: value.detach() if isinstance(value, Tensor) else value for name, value in seen.items()})
        size = sum(value.numel() for value in seen.values() if isinstance(value, Tensor))
        if (may_wait and len(pending) >= STEPS_PER_UPDATE) or len(pending) * size > MAX_PENDING:
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

    def load(self, state: dict[str, Any]) -> None:
        """Add the `state()` of a process to the training metrics."""
        self._pending["train"] += state["waiting"]
        metrics = self._train_metrics()
        for name, (values, updates) in state["seen"].items():
            metric = metrics[name]
            values = deepcopy(move_data_to_device(values, metric.device))  # metrics of a compute group share tensors
            if updates and metric.update_called:
                metric.merge_state(values)
            elif updates:
                for key, value in values.items():
                    setattr(metric, key, value)
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
        for _, group in groupby(pending, _shape):  # as in images of several sizes
            steps = list(group)
            joined = {name: _join([seen[name] for seen in steps], device) for name in steps[0]}
            with counting():
                metrics.update(**joined)
                if stage != "train":
                    self.unlogged.update(**joined)


def _shape(seen: dict[str, Any]) -> list[Any]:
    """The shapes that steps must share to be joined."""
    return [value.shape[1:] for value in seen.values() if isinstance(value, Tensor)]


def _join(values: list[Any], device: torch.device) -> Tensor:
    """Concatenate the values of several steps along dimension 0."""
    if isinstance(values[0], Tensor):
        return torch.cat([(value if value.ndim else value.reshape(1)).to(device) for value in values])
    return torch.tensor(values, device=device)


def check_step(name: str, result: Any, metrics: DeferredMetrics) -> None:
    """Raise InputError if a task's `step` does not return a loss and a dict of the arguments of all metrics."""
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        raise InputError(f"{name}.step returns {_shown(result)}: return the loss and a dict of the metrics' arguments")
    loss, seen = result
    if not isinstance(loss, Tensor) or loss.ndim:
        way = "give one number, as loss.mean() or reduction=mean do"
        raise InputError(f"{name}.step returns the loss {_shown(loss)}: {way}")
    if "weight" not in seen:
        names = ", ".join(seen) or "nothing"
        raise InputError(f"{name}.step gives {names}: add weight, the number of samples in the loss")
    given = ", ".join(f"{key} {_shown(value)}" for key, value in seen.items())
    known = {"weight"}
    for key, metric in [*metrics._train_metrics().items(), *metrics.unlogged.items(keep_base=True, copy_state=False)]:
        trial = metric.clone()
        trial.reset()
        known |= inspect.signature(trial.update).parameters.keys()
        try:
            taken = trial._filter_kwargs(**{name: _join([value], trial.device) for name, value in seen.items()})
            known |= taken.keys()  # also those of **kwargs
            with counting():
                trial.update(**taken)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{name}.step gives {given}, which metric {key} does not take: {reason}") from error
    if unknown := [key for key in seen if key not in known]:
        raise InputError(f"{name}.step gives {unknown[0]}, which no metric takes: they take {', '.join(sorted(known))}")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
