"""Regression."""

from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from src.engine.data.large_batches import in_large_batches
from src.engine.data.loading import announce
from src.engine.system.batches import Sample
from src.engine.system.errors import InputError
from src.tasks.precision import check_precision
from src.tasks.regression_metrics import MAE, R2, RMSE, mean_and_std, regression_figures
from src.tasks.task import Task, check_outputs


class Regressor(Task):
    """Trains and tests a network that predicts one or several numbers.

    Args:
        net: the network, (B, ...) inputs -> (B, num_targets) float, or (B,) for one target.
        loss: mean loss on standardised predictions and targets (B, num_targets). Default: mean squared error; others:
            `torch.nn.L1Loss`, `torch.nn.HuberLoss`.
        num_targets: number of targets; default: the network's `num_targets`, or 1.

    A batch is the network's inputs, then targets (B,) or (B, num_targets) float, NaN where unknown. Targets are
    standardised by the DataModule's training part, which is read once before training; `forward`, metrics and
    predictions are in their own unit. Logs `{train,val,test}/{loss,r2,mae,rmse}`, means over the targets.

    Raises:
        InputError: outputs or targets have another shape, or a target is unknown in the whole training part.
    """

    figure_samples = 2000
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, net: nn.Module, loss: nn.Module | None = None, num_targets: int | None = None) -> None:
        count = num_targets or int(getattr(net, "num_targets", 1))
        check_outputs(net, count)
        super().__init__(net, self.configure_metrics(count))
        self.save_arguments(net=net, loss=loss, num_targets=num_targets)
        self.num_targets = count
        self.loss = loss or nn.MSELoss()
        self.register_buffer("target_mean", torch.zeros(count))
        self.register_buffer("target_std", torch.ones(count))

    def configure_metrics(self, num_targets: int) -> MetricCollection:
        """The logged metrics; `update` takes `preds` and `target` (B, num_targets), also standardised as `outputs` and
        `scaled`, `value` (loss) and `weight`."""
        scores = {"r2": R2(num_targets), "mae": MAE(num_targets), "rmse": RMSE(num_targets)}
        return MetricCollection({"loss": MeanMetric(), **scores})

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_precision(self, stage, "targets")
        self.label_names(self.num_targets)
        data = getattr(self.trainer, "datamodule", None)
        if stage != "fit":
            return
        if data is None:
            announce("no DataModule is given, so targets are not standardised: scale them, or give one to the Trainer")
            return
        limit = self.trainer.limit_train_batches if isinstance(self.trainer.limit_train_batches, int) else None
        loader = data.train_dataloader()
        if limit is None and self.trainer.max_steps > 0 and sized_len(loader) is None:
            limit = self.trainer.max_steps * self.trainer.accumulate_grad_batches
        with torch.random.fork_rng(devices=[]):  # a shuffling loader draws a seed
            batches = in_large_batches(loader, limit)
            targets = torch.cat([self._columns(self.split_batch(batch)[1], "targets") for batch in batches])
        mean, std = mean_and_std(targets)
        unknown = mean.isnan()
        if limit is not None:  # not all of the part was read
            mean, std = mean.where(~unknown, 0), std.where(~unknown, 1)
        elif unknown.any():
            name = self.label_names(self.num_targets)[int(unknown.nonzero()[0])]
            raise InputError(f"target {name} is unknown (NaN) in the whole training part: leave it out, or add numbers")
        self.target_mean.copy_(mean)
        self.target_std.copy_(std)
        shown = ", ".join(f"{a:.4g} ± {b:.4g}" for a, b in zip(mean.tolist(), std.tolist(), strict=True))
        rank_zero_info(f"Targets of the training part: {shown}")

    def forward(self, *inputs: Tensor) -> Tensor:
        """Network inputs -> predictions (B, num_targets) float, in the targets' unit."""
        return self._outputs(*inputs) * self.target_std + self.target_mean

    def _outputs(self, *inputs: Tensor) -> Tensor:
        """Standardised predictions (B, num_targets)."""
        return self._columns(self.net(*inputs), "predictions").to(self.target_std.dtype)

    def _columns(self, values: Tensor, name: str) -> Tensor:
        """(B,) or (B, num_targets) float -> (B, num_targets)."""
        if not values.is_floating_point():
            raise InputError(
                f"{name} are {values.dtype}, {type(self).__name__} takes float, NaN where unknown: convert them"
            )
        found = values.unsqueeze(1) if values.ndim == 1 else values
        if found.ndim != 2 or found.shape[1] != self.num_targets:
            wanted = f"give (B, {self.num_targets}), or another num_targets"
            raise InputError(f"{name} of {type(self).__name__} have the shape {tuple(values.shape)}: {wanted}")
        return found

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a batch, and the arguments of the metrics' `update`."""
        inputs, target = self.split_batch(batch)
        target = self._columns(target, "targets").to(self.target_std.dtype)
        outputs = self._outputs(*inputs)
        scaled = (target - self.target_mean) / self.target_std
        known = scaled.isfinite()
        weight = known.sum()
        # An unknown target is replaced by the prediction, which adds nothing to the loss.
        loss = self.loss(outputs, torch.where(known, scaled, outputs.detach())) * (known.numel() / weight.clamp(min=1))
        seen = {"preds": outputs * self.target_std + self.target_mean, "target": target}
        return loss, {**seen, "outputs": outputs, "scaled": scaled, "value": loss, "weight": weight}

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Predictions (B, num_targets) float, in the targets' unit."""
        return {"values": self(*inputs)}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        """One number per target, named by the DataModule's `labels`."""
        default = ["value"] if self.num_targets == 1 else [f"value_{number}" for number in range(self.num_targets)]
        columns = self.label_names(self.num_targets, labels or default)
        return [dict(zip(columns, row, strict=True)) for row in predictions["values"].tolist()]

    def figures(self, samples: list[Sample], labels: list[str]) -> dict[str, Any]:
        """Predictions against true values, and residuals."""
        return regression_figures(samples, labels)
