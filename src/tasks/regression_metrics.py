"""Statistics, metrics and figures for regression; unknown targets (NaN or infinite) do not count."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from src.engine.data.loading import announce
from src.engine.system.batches import Sample, gathered
from src.engine.tensorboard.figures import escape_dollars, new_figure


def mean_and_std(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each target over all processes, float64; the deviation of a constant is set to 1.

    Args:
        targets: (N, num_targets) float, those of this process.
    """
    known = targets.isfinite()
    targets = torch.where(known, targets.double(), 0)
    count = sum(gathered(known.double().sum(dim=0)))
    mean = sum(gathered(targets.sum(dim=0))) / count
    # In a second pass: the squares of large numbers would lose the digits of a small deviation.
    squares = torch.where(known, targets - mean, 0) ** 2
    std = (sum(gathered(squares.sum(dim=0))) / count).sqrt()
    if ((std == 0) & (torch.as_tensor(count) > 1)).any():
        announce("a target is the same in the whole training part: there is nothing to learn")
    return mean, torch.where(std == 0, 1.0, std)


class RegressionMetric(Metric):
    """Base class: a score computed from sums over the samples, then averaged over the targets.

    Args:
        num_targets: number of targets.

    `update` takes predictions and targets, (N, num_targets) float; targets that are not finite are ignored.
    """

    full_state_update = False
    sums: Tensor  # (5, num_targets)

    def __init__(self, num_targets: int) -> None:
        super().__init__()
        # Squares of large numbers are not finite in float32.
        self.add_state("sums", torch.zeros(5, num_targets, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        known = target.isfinite()
        target = torch.where(known, target, 0).double()
        error = torch.where(known, preds.double() - target, 0)
        self.sums += torch.stack([known.to(error.dtype), error.abs(), error**2, target, target**2]).sum(dim=1)


class MAE(RegressionMetric):
    """Mean absolute error, in the unit of the targets."""

    def compute(self) -> Tensor:
        return (self.sums[1] / self.sums[0]).nanmean()


class RMSE(RegressionMetric):
    """Root of the mean squared error of each target, in its unit."""

    def compute(self) -> Tensor:
        return (self.sums[2] / self.sums[0]).sqrt().nanmean()


class R2(RegressionMetric):
    """Coefficient of determination, from standardised numbers: in float32 large numbers would lose precision.

    At most 1. Targets that do not vary are left out.
    """

    def update(self, outputs: Tensor, scaled: Tensor) -> None:
        super().update(outputs, scaled)

    def compute(self) -> Tensor:
        count, _, squared, total, squares = self.sums
        spread = squares - total**2 / count
        return torch.where(spread > 1e-6 * squares, 1 - squared / spread, torch.nan).nanmean()


def regression_figures(samples: list[Sample], labels: list[str]) -> dict[str, Any]:
    """Predictions against true values, residuals against predictions, one plot per target; `target` (num_targets,)."""
    if not samples:
        return {}
    targets, preds = (torch.stack([sample[name].float() for sample in samples]) for name in ("target", "preds"))
    count = targets.shape[1]
    names = escape_dollars(labels) or ["value"] * count
    true, rest = new_figure(4 * count, 4), new_figure(4 * count, 4)
    for number, name in enumerate(names):
        known = targets[:, number].isfinite()
        x, y = targets[known, number].numpy(), preds[known, number].numpy()
        axes = true.add_subplot(1, count, number + 1, xlabel=f"true {name}", ylabel="predicted")
        axes.scatter(x, y, s=6, alpha=0.5)
        if len(x):
            axes.axline((float(x.mean()),) * 2, slope=1, color="black", linewidth=1)
        axes = rest.add_subplot(1, count, number + 1, xlabel=f"predicted {name}", ylabel="predicted - true")
        axes.scatter(y, y - x, s=6, alpha=0.5)
        axes.axhline(0, color="black", linewidth=1)
    return {"predicted and true": true, "residuals": rest}
