"""The base class of all tasks: a network, its loss, its metrics."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MetricCollection

from src.engine.data.loading import IGNORED
from src.engine.system.batches import Sample, gathered, labels_of
from src.engine.system.errors import GUIDE, InputError
from src.engine.training.deferred_metrics import DeferredMetrics, check_step
from src.engine.training.hyperparameters import check_limits, describe_arguments


class Task(LightningModule):
    """Trains, validates and tests a network. A subclass implements `step`.

    Args:
        net: the network.
        metrics: logged once per epoch under `train/`, `val/` and `test/`.
        unlogged: validation and test metrics that are not a single number, such as a confusion matrix.

    What a subclass may override, in the order of the calls: `setup`, once the data is known; `configure_optimizers`;
    `step`, for each batch; `log_metrics`, at the end of validation and test; `figures`, after the test; for predict,
    export and serve `forward`, `predictions` and `prediction_rows`.

    `train/loss_step` is logged every `log_every_n_steps` steps. With several processes, loss and gradients equal those
    of one process with all samples; each sample counts once.

    Raises:
        InputError: the data has more tokens, a longer context or another number of labels than the network, or `step`
            returns something else than it should.
    """

    figure_samples = 0
    """Number of test samples that `figures` gets."""

    def __init__(self, net: nn.Module, metrics: MetricCollection, unlogged: MetricCollection | None = None) -> None:
        super().__init__()
        self.net = net
        self.metrics = DeferredMetrics(metrics, unlogged)
        self._logged_step = -1
        self._checked = False

    def save_arguments(self, **arguments: Any) -> None:
        """Save the arguments of the constructor, so that a checkpoint can rebuild this task and its modules."""
        # The command line records its parsed arguments instead.
        self.save_hyperparameters(describe_arguments(type(self), **arguments))

    def configure_optimizers(self) -> Any:
        """AdamW (Loshchilov and Hutter 2019), unless the command line configures another optimizer."""
        return torch.optim.AdamW(getattr(self, "parameter_groups", self.parameters)())

    configure_optimizers.is_default = True  # type: ignore[attr-defined]  # replaced by a recipe without a message

    def setup(self, stage: str) -> None:
        self.metrics.reset()
        check_limits(self.net, getattr(self.trainer, "datamodule", None))

    def forward(self, *inputs: Any) -> Any:
        """The network's output."""
        return self.net(*inputs)

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The mean loss of a batch, and arguments for the metrics' `update`: tensors (N, ...) or numbers.

        They must include `weight`: the number of samples or tokens that the loss averages over. The arguments of
        several steps are joined along their first dimension.
        """
        raise InputError(
            f"{type(self).__name__} has no method step: write one that returns the loss of a batch; {GUIDE}"
        )

    def predictions(self, *inputs: Tensor) -> dict[str, Tensor]:
        """What is predicted for network inputs: tensors with one row per input. Override it to name what they are."""
        return {"output": self(*inputs)}

    def prediction_rows(self, predictions: dict[str, Tensor], labels: list[str]) -> list[dict[str, Any]]:
        """Predictions for tables and JSON: one dict per input, of text, numbers, lists or dicts of them, or a mask.

        Args:
            predictions: from `predictions`.
            labels: the DataModule's `labels`; may be empty.
        """
        raise InputError(
            f"{type(self).__name__} does not say how to write its predictions: give it a method prediction_rows;"
            f" {GUIDE}"
        )

    def figures(self, samples: list[Sample], labels: list[str]) -> dict[str, Any]:
        """Figures by name for TensorBoard, from the first `figure_samples` test samples.

        Args:
            samples: `inputs`, `target` and `preds` of each sample, those that `test_step` returns.
            labels: the DataModule's `labels`; may be empty.
        """
        return {}

    def label_names(self, count: int, labels: Sequence[Any] | None = None) -> list[str]:
        """The labels as text, default: those of the DataModule; numbers from 0 if there are none.

        Raises:
            InputError: there are not `count` labels.
        """
        given = labels_of(getattr(self.trainer, "datamodule", None)) if labels is None else labels
        found = [str(label) for label in given] or [str(number) for number in range(count)]
        if len(found) != count:
            name = type(self).__name__
            size = "num_targets" if hasattr(self, "num_targets") else "num_classes"
            raise InputError(
                f"the data has {len(found)} labels and {name} {count} outputs: give one label per output, or a network"
                f" with {len(found)} outputs and {size} {len(found)}"
            )
        return found

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        logs = every and (self.global_step + 1) % every == 0 and self.global_step != self._logged_step
        loss, seen = self.check(self.step(batch))
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
        return self._evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Any) -> Any:
        """Update the metrics of `val` or `test`; returns what callbacks get: here the arguments of their `update`."""
        seen = self.check(self.step(batch))[1]
        self.metrics.add(stage, seen)
        return seen

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """The `predictions` for a batch, or for one input tensor."""
        return self.predictions(*((batch,) if isinstance(batch, Tensor) else batch[:-1]))

    def split_batch(self, batch: Any) -> tuple[list[Any], Tensor]:
        """The network's inputs in a batch, and its targets (B, ...).

        Raises:
            InputError: the batch is not a tuple or list of these, or the network takes other inputs.
        """
        data = getattr(self._trainer, "datamodule", None)  # None without a Trainer
        name = "the DataLoader" if data is None else type(data).__name__
        parts = list(batch) if isinstance(batch, list | tuple) else [batch]
        if len(parts) < 2 or not isinstance(parts[-1], Tensor) or not parts[-1].ndim:
            found = ", ".join(_describe(one) for one in parts)
            raise InputError(
                f"a batch of {name} is {found}: {type(self).__name__} takes a tuple of tensors (B, ...), first the"
                f" network's inputs, last the targets; {GUIDE}"
            )
        *inputs, targets = parts
        if not self._checked:
            try:
                inspect.signature(self.net.forward).bind(*inputs)
            except TypeError as error:
                found = ", ".join(_describe(one) for one in inputs)
                raise InputError(
                    f"{type(self.net).__name__}.forward does not take the inputs that {name} gives before the targets,"
                    f" {found}: {error}; {GUIDE}"
                ) from error
        return inputs, targets

    def check_targets(self, targets: Tensor, most: int, advice: str) -> None:
        """Raise InputError if a known target is not 0 to `most`; on a GPU, where it waits, only in the first batch."""
        if not self._checked or targets.device.type == "cpu":
            wrong = targets[(targets != IGNORED) & ((targets < 0) | (targets > most))]
            if len(wrong):
                name = type(self).__name__
                raise InputError(
                    f"target {wrong[0].item():g} does not fit {name}: give {advice}, or {IGNORED} to leave it out"
                )

    def check(self, result: Any) -> tuple[Tensor, dict[str, Any]]:
        """The result of `step`; the first one is checked.

        Raises:
            InputError: it is not what `step` should return.
        """
        if not self._checked:
            check_step(type(self).__name__, result, self.metrics)
            self._checked = True
        return result

    def on_validation_epoch_start(self) -> None:
        self.metrics.unlogged.reset()

    on_test_epoch_start = on_validation_epoch_start

    def on_train_epoch_end(self) -> None:
        if any(gathered(self.metrics.has_seen("train"))):  # none after resuming at the end of an epoch
            metrics = self.metrics["train"]
            values = {name: value.item() for name, value in metrics.compute().items()}
            metrics.reset()
            self.log_dict(values, logger=False, sync_dist=True)
            self._write(values, self.global_step - 1)

    def on_validation_epoch_end(self) -> None:
        stage = "test" if self.trainer.testing else "val"
        if self.metrics.has_seen(stage):  # False after resuming at the end of an epoch
            self.log_metrics(stage)

    on_test_epoch_end = on_validation_epoch_end

    def log_metrics(self, stage: str) -> None:
        """Log the metrics of `val` or `test`; a subclass may log more."""
        self.log_dict(self.metrics[stage], prog_bar=stage == "val")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the metrics' state in this epoch, from every process."""
        checkpoint["half_epoch"] = gathered(move_data_to_device(self.metrics.state(), torch.device("cpu")))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            # With fewer processes than before, one process loads the state of several.
            for state in checkpoint.get("half_epoch", [])[self.trainer.global_rank :: self.trainer.world_size]:
                self.metrics.load(state)

    def _write(self, values: dict[str, float], step: int) -> None:
        """Log now: Lightning logs after saving a checkpoint, so a run killed in between would lose the values."""
        for logger in self.trainer.loggers:
            logger.log_metrics({**values, "epoch": self.current_epoch}, step)

    def _share(self, weight: Tensor | int) -> Tensor:
        """Factor on this process's loss that turns the mean over processes into the mean over samples."""
        # Not as_tensor: to copy a number to a GPU waits for it.
        if not isinstance(weight, Tensor):
            weight = torch.full((), weight, device=self.device)
        count = weight.to(self.device, torch.float64)
        total = count.clone()
        torch.distributed.all_reduce(total)
        return count * self.trainer.world_size / total.where(total > 0, 1)


def _describe(part: Any) -> str:
    """Of a batch, for a message."""
    if isinstance(part, Tensor):
        return f"a tensor {tuple(part.shape)}"
    return f"a dict with {', '.join(map(str, part))}" if isinstance(part, dict) else f"a {type(part).__name__}"


def check_outputs(net: nn.Module, count: int) -> None:
    """Raise InputError if a network averages softmax probabilities, but the task has none."""
    if count > 1 and getattr(net, "average", None) == "probabilities":
        raise InputError(
            f"{type(net).__name__} averages softmax probabilities, which this task lacks: give"
            " --model.net.average logits"
        )
