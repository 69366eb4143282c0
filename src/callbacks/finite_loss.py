"""Stops a run whose loss is no number any more."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from src.errors import InputError


class NotFiniteError(InputError):
    """The loss, or a weight, has become NaN or infinite."""


class FiniteLoss(Callback):
    """Looks at the loss of every step on its device, and reads there at log steps and before every checkpoint.

    Raises:
        NotFiniteError: it is NaN or infinite, or a weight is that is to be saved; the message names the step it began
            at and the learning rate.
    """

    def __init__(self) -> None:
        self._first = torch.tensor(-1)  # number of the first step whose loss was not finite, on the device

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first = torch.tensor(-1, device=pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        step = trainer.global_step - (not trainer.fit_loop.epoch_loop._should_accumulate())
        is_first = (self._first < 0) & ~torch.isfinite(loss.detach()).all()
        self._first = torch.where(is_first, step, self._first)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not trainer.training and not trainer.validating:
            return
        self._check(trainer)
        bad = [name for name, value in pl_module.named_parameters() if not _is_finite(value)]
        if _anywhere(trainer, bool(bad)):
            name = f" ({bad[0]})" if bad else ""
            raise NotFiniteError(
                f"a weight{name} is NaN or infinite after step {trainer.global_step - 1}, {_advice(trainer)}"
            )

    def _check(self, trainer: Trainer) -> None:
        first = int(self._first)
        if not _anywhere(trainer, first >= 0):
            return
        if trainer.world_size > 1:
            steps = torch.tensor(first if first >= 0 else 2**62, device=self._first.device)
            torch.distributed.all_reduce(steps, torch.distributed.ReduceOp.MIN)
            first = int(steps)
        raise NotFiniteError(f"the loss is NaN or infinite since step {first}, {_advice(trainer)}")


def _advice(trainer: Trainer) -> str:
    lr = max((float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups), default=0.0)
    return (
        f"at learning rate {lr:.3g}: give a lower --optimizer.lr, clip with --trainer.gradient_clip_val 1, or let"
        " --retries 3 do it"
    )


def _is_finite(value: Tensor) -> bool:
    local: Any = value.to_local() if hasattr(value, "to_local") else value
    return bool(torch.isfinite(local).all())


def _anywhere(trainer: Trainer, here: bool) -> bool:
    """Whether something is so in any process."""
    return trainer.strategy.reduce_boolean_decision(here, all=False)
