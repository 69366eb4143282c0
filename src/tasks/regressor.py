"""The task of predicting numbers."""

from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, MetricCollection
from torchmetrics.regression import R2Score

from src.engine.system.errors import InputError
from src.engine.tensorboard.figures import Sample, regression_figures
from src.engine.training.hyperparameters import describe_arguments
from src.tasks.task import Task


class _KnownTargets:
    """Leaves out samples with a NaN target."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        known = target.isfinite().all(dim=1)
        super().update(preds[known], target[known])  # type: ignore[misc]


class R2(_KnownTargets, R2Score):
    """R2, mean over the targets; NaN for fewer than two samples."""

    def compute(self) -> Tensor:
        return super().compute() if self.total > 1 else torch.tensor(torch.nan, device=self.device)


class AbsoluteDeviation(_KnownTargets, MeanAbsoluteError):  # noqa: N818
    """Mean absolute error."""


class SquaredDeviation(_KnownTargets, MeanSquaredError):  # noqa: N818
    """Mean squared error, or its root."""


class Regressor(Task):
    """Trains and tests a network that predicts one or several numbers.

    Args:
        net: the network, (B, ...) inputs -> (B, num_targets) float, or (B,) for one target.
        loss: loss on standardised predictions and targets (B, num_targets). Default: mean squared error; others:
            `torch.nn.L1Loss`, `torch.nn.HuberLoss`.
        num_targets: number of targets; default: the network's `num_targets`, or 1.

    A batch is the network's inputs, then targets (B,) or (B, num_targets); a sample with a NaN target does not count.
    Targets are standardised by the training part; `forward`, metrics and predictions are in their own unit. Logs
    `{train,val,test}/{loss,r2,mae,rmse}`.

    Raises:
        InputError: the network's output does not have the shape of the targets.
    """

    figure_samples = 2000
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, net: nn.Module, loss: nn.Module | None = None, num_targets: int | None = None) -> None:
        saved = describe_arguments(type(self), net=net, loss=loss, num_targets=num_targets)
        super().__init__(net, self.configure_metrics())
        self.save_hyperparameters(saved)
        self.num_targets = num_targets or int(getattr(net, "num_targets", 1))
        self.loss = loss or self.configure_loss()
        self.register_buffer("target_mean", torch.zeros(self.num_targets))
        self.register_buffer("target_std", torch.ones(self.num_targets))

    def configure_loss(self) -> nn.Module:
        """The default loss, on standardised predictions and targets, (B, num_targets) each."""
        return nn.MSELoss()

    def configure_metrics(self) -> MetricCollection:
        """The logged metrics; `update` takes `preds` and `target` (B, num_targets), `value` (loss) and `weight`."""
        return MetricCollection(
            {"loss": MeanMetric(), "r2": R2(), "mae": AbsoluteDeviation(), "rmse": SquaredDeviation(squared=False)}
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage != "fit" or data is None:
            return
        with torch.random.fork_rng(devices=[]):  # a shuffling loader draws a seed
            targets = torch.cat(
                [_columns(batch[-1], self.num_targets, self).double() for batch in data.train_dataloader()]
            )
        targets = targets[targets.isfinite().all(dim=1)]
        sums = torch.stack([torch.ones_like(targets).sum(0), targets.sum(0), (targets**2).sum(0)])
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        count, mean = sums[0], sums[1] / sums[0]
        std = (sums[2] / count - mean**2).clamp(min=0).sqrt()
        self.target_mean, self.target_std = mean.float(), torch.where(std > 0, std, 1.0).float()
        shown = ", ".join(f"{a:.4g} ± {b:.4g}" for a, b in zip(mean.tolist(), std.tolist(), strict=True))
        rank_zero_info(f"Targets of the training part: {shown}")

    def forward(self, *inputs: Tensor) -> Tensor:
        """Network inputs -> predictions (B, num_targets) float, in the targets' unit."""
        return self._outputs(*inputs) * self.target_std + self.target_mean

    def _outputs(self, *inputs: Tensor) -> Tensor:
        return _columns(self.net(*inputs).float(), self.num_targets, self)

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch, and the arguments of the metrics' `update`."""
        *inputs, targets = batch
        targets = _columns(targets, self.num_targets, self).float()
        outputs = self._outputs(*inputs)  # (B, num_targets)
        known = targets.isfinite().all(dim=1, keepdim=True)  # (B, 1)
        weight = known.sum()
        scaled = torch.where(known, (targets - self.target_mean) / self.target_std, outputs.detach())
        loss = self.loss(outputs, scaled) * (len(targets) / weight.clamp(min=1))
        preds = outputs.detach() * self.target_std + self.target_mean
        return loss, {"preds": preds, "target": targets, "value": loss.detach(), "weight": weight}

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Predictions (B, num_targets) float, in the targets' unit."""
        return {"values": self(*inputs)}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        """One number per target, named by the DataModule's `labels`."""
        default = ["value"] if self.num_targets == 1 else [f"value_{number}" for number in range(self.num_targets)]
        return [dict(zip(labels or default, row, strict=True)) for row in predictions["values"].tolist()]

    def figures(self, samples: list[Sample], labels: list[str]) -> dict[str, Any]:
        """Predictions over true values, and residuals."""
        return regression_figures(samples, labels)


def _columns(values: Tensor, num_targets: int, task: Regressor) -> Tensor:
    """(B,) or (B, num_targets) -> (B, num_targets)."""
    found = values.unsqueeze(1) if values.ndim == 1 else values
    if found.ndim != 2 or found.shape[1] != num_targets:
        raise InputError(
            f"{type(task).__name__} has {num_targets} targets, and got predictions or targets of shape"
            f" {tuple(values.shape)}: give (B, {num_targets}), or change num_targets"
        )
    return found
