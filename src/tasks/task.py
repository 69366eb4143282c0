"""What all tasks share: a loss, and metrics that cost next to nothing in a step."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MetricCollection

from src.engine.training.hyperparameters import check_limits

# Steps whose predictions wait at least until the metrics take them at once: an update costs as much as a tenth of a
# small network's step, and nearly all of that is paid per call.
STEPS_PER_UPDATE = 50


class Task(LightningModule):
    """Trains, validates and tests a network by the loss that `step` gives.

    Args:
        net: the network.
        metrics: logged once an epoch, a copy each under `train/`, `val/` and `test/`.

    `train/loss_step` is logged every `log_every_n_steps` steps; between these, no step waits for the device. With
    several processes, loss and gradients are those of one process with all their samples; each sample counts once.

    Raises:
        InputError: the data has more tokens than the network, or longer contexts.
    """

    def __init__(self, net: nn.Module, metrics: MetricCollection) -> None:
        super().__init__()
        self.net = net
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self._waiting: dict[str, list[dict[str, Any]]] = {}

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The mean loss of a batch, and what the metrics' `update` takes of it: detached tensors, or numbers.

        Among these is `weight`, of how many samples or tokens the loss is the mean.
        """
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        self._waiting = {"train": [], "val": [], "test": []}
        check_limits(self.net, getattr(self.trainer, "datamodule", None))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_log_step = every and (self.global_step + 1) % every == 0
        loss, seen = self.step(batch)
        self._note("train", seen, may_wait=bool(is_log_step or not every))
        if self.trainer.world_size > 1:
            loss = loss * self._share(seen["weight"]).to(loss.dtype)
        if is_log_step and not self.trainer.fit_loop._should_accumulate():
            value = self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")
            # Not by self.log, which makes this step and every later one slower.
            self.trainer.callback_metrics["train/loss_step"] = value
            self._write({"train/loss_step": value.item()}, self.global_step)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self._note("val", self.step(batch)[1])

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self._note("test", self.step(batch)[1])

    def on_train_epoch_end(self) -> None:
        self._update_waiting("train")
        if not any(metric.update_called for metric in self.train_metrics.values()):
            return  # a run goes on where this was done already
        values = {name: value.item() for name, value in self.train_metrics.compute().items()}
        self.train_metrics.reset()
        self.log_dict(values, logger=False, sync_dist=True)
        self._write(values, self.global_step - 1)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the metrics of every process have seen of this epoch."""
        metrics = self.train_metrics.items(keep_base=True, copy_state=False)
        seen = {name: (metric.metric_state, metric._update_count) for name, metric in metrics}
        everyone = [{"seen": seen, "waiting": self._waiting.get("train", [])}]
        if self._trainer is not None and self.trainer.world_size > 1:
            everyone *= self.trainer.world_size
            torch.distributed.all_gather_object(everyone, everyone[0])
        checkpoint["half_epoch"] = everyone

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        # With fewer processes than before, one takes up what several had seen.
        for part in checkpoint.get("half_epoch", [])[self.trainer.global_rank :: self.trainer.world_size]:
            self._waiting["train"] += part["waiting"]
            for name, (state, updates) in part["seen"].items():
                metric: Any = self.train_metrics[name]
                if updates and metric.update_called:
                    metric.merge_state(state)
                elif updates:
                    for key, value in state.items():
                        setattr(metric, key, value.to(self.device) if isinstance(value, Tensor) else value)
                metric._update_count += updates

    def update_metrics(self, stage: str, **seen: Tensor) -> None:
        """Take what `step` gave in several steps, each argument joined to one row."""
        getattr(self, f"{stage}_metrics").update(**seen)

    def _note(self, stage: str, seen: dict[str, Any], may_wait: bool = True) -> None:
        """Keep what the metrics are to see; where the program may wait for the device, they may be updated."""
        self._waiting[stage].append(seen)
        if may_wait and len(self._waiting[stage]) >= STEPS_PER_UPDATE:
            self._update_waiting(stage)

    def _write(self, values: dict[str, float], step: int) -> None:
        """Hand values to the loggers at once.

        Lightning does so behind the hooks that save checkpoints, and a run that is killed in between would lose them.
        """
        for logger in self.trainer.loggers:
            logger.log_metrics({**values, "epoch": self.current_epoch}, step)

    def _share(self, weight: Tensor | int) -> Tensor:
        """By what a process's loss is multiplied, so that the mean over all processes is that over all samples."""
        count = torch.as_tensor(weight, device=self.device, dtype=torch.float64)
        total = count.clone()
        torch.distributed.all_reduce(total)
        return count * self.trainer.world_size / total

    def _update_waiting(self, stage: str) -> None:
        waiting, self._waiting[stage] = self._waiting[stage], []
        if waiting:
            self.update_metrics(stage, **{name: self._join([seen[name] for seen in waiting]) for name in waiting[0]})

    def _join(self, values: list[Any]) -> Tensor:
        if isinstance(values[0], Tensor):
            return torch.cat([value.reshape(-1).to(self.device) for value in values])
        return torch.tensor(values, device=self.device)

    def _log_metrics(self, stage: str) -> None:
        self._update_waiting(stage)
        metrics: MetricCollection = getattr(self, f"{stage}_metrics")
        if any(metric.update_called for metric in metrics.values()):  # not where a resumed epoch was already over
            self.log_dict(metrics, prog_bar=stage == "val")
