"""The base class of all tasks: a network, its loss, its metrics."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MetricCollection

from src.engine.training.deferred_metrics import DeferredMetrics
from src.engine.training.hyperparameters import check_limits


class Task(LightningModule):
    """Trains, validates and tests a network. A subclass implements `step`.

    Args:
        net: the network.
        metrics: logged once per epoch under `train/`, `val/` and `test/`.
        unlogged: validation and test metrics that are not a single number, such as a confusion matrix.

    `train/loss_step` is logged every `log_every_n_steps` steps. With several processes, loss and gradients equal those
    of one process with all samples; each sample counts once.

    Raises:
        InputError: the data has more tokens or a longer context than the network accepts.
    """

    def __init__(self, net: nn.Module, metrics: MetricCollection, unlogged: MetricCollection | None = None) -> None:
        super().__init__()
        self.net = net
        self.metrics = DeferredMetrics(metrics, unlogged)
        self._logged_step = -1

    def forward(self, *inputs: Any) -> Any:
        """The network's output."""
        return self.net(*inputs)

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The mean loss of a batch, and arguments for the metrics' `update`: detached tensors (N, ...) or numbers.

        They must include `weight`: the number of samples or tokens that the loss averages over.
        """
        raise NotImplementedError

    def pictures(self) -> list[Callback]:
        """Callbacks that `src.train` adds to show results, unless the configuration has its own of these classes."""
        return []

    def setup(self, stage: str) -> None:
        self.metrics.reset()
        check_limits(self.net, getattr(self.trainer, "datamodule", None))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        logs = every and (self.global_step + 1) % every == 0 and self.global_step != self._logged_step
        loss, seen = self.step(batch)
        # Between log steps, nothing waits for the device.
        self.metrics.add("train", seen, may_wait=bool(logs or not every))
        if self.trainer.world_size > 1:
            loss = loss * self._share(seen["weight"]).to(loss.dtype)
        if logs:
            self._logged_step = self.global_step
            value = self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")
            # Not self.log, which slows down this step and every later one.
            self.trainer.callback_metrics["train/loss_step"] = value
            self._write({"train/loss_step": value.item()}, self.global_step)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.metrics.add("val", self.step(batch)[1])

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.metrics.add("test", self.step(batch)[1])

    def on_validation_epoch_start(self) -> None:
        self.metrics.unlogged.reset()

    def on_test_epoch_start(self) -> None:
        self.metrics.unlogged.reset()

    def on_train_epoch_end(self) -> None:
        if self.metrics.has_seen("train"):  # False after resuming at the end of an epoch
            metrics = self.metrics["train"]
            values = {name: value.item() for name, value in metrics.compute().items()}
            metrics.reset()
            self.log_dict(values, logger=False, sync_dist=True)
            self._write(values, self.global_step - 1)

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test")

    def log_metrics(self, stage: str) -> None:
        """Log the metrics of `val` or `test`; a subclass may log more."""
        if self.metrics.has_seen(stage):  # False after resuming at the end of an epoch
            self.log_dict(self.metrics[stage], prog_bar=stage == "val")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the metrics' state in this epoch, from every process."""
        states = [self.metrics.state()]
        if self._trainer is not None and self.trainer.world_size > 1:
            states *= self.trainer.world_size
            torch.distributed.all_gather_object(states, states[0])
        checkpoint["half_epoch"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            # With fewer processes than before, one process loads the state of several.
            for state in checkpoint.get("half_epoch", [])[self.trainer.global_rank :: self.trainer.world_size]:
                self.metrics.load(state, self.device)

    def _write(self, values: dict[str, float], step: int) -> None:
        """Log now: Lightning logs after saving a checkpoint, so a run killed in between would lose the values."""
        for logger in self.trainer.loggers:
            logger.log_metrics({**values, "epoch": self.current_epoch}, step)

    def _share(self, weight: Tensor | int) -> Tensor:
        """Factor on this process's loss that turns the mean over processes into the mean over samples."""
        count = torch.as_tensor(weight, device=self.device, dtype=torch.float64)
        total = count.clone()
        torch.distributed.all_reduce(total)
        return count * self.trainer.world_size / total
