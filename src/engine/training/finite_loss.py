"""Stops a run whose loss becomes NaN or infinite."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from src.engine.system.errors import InputError

MAX_PENDING_LOSSES = 500  # checked after this many steps at the latest, even if log steps are further apart
NO_STEP = 2**62


class NotFiniteError(InputError):
    """The loss, or a weight, has become NaN or infinite."""


class FiniteLoss(Callback):
    """Keeps the loss of every step on its device; checks all at log steps and before validations and checkpoints.

    Raises NotFiniteError if a loss, or a trained weight in a checkpoint, is NaN or infinite.
    """

    def __init__(self) -> None:
        self._losses: list[tuple[int, Tensor]] = []  # step and loss, since the last check
        self._global_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses = []
        self._global_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            return
        has_stepped, self._global_step = trainer.global_step > self._global_step, trainer.global_step
        loss = loss.detach()
        self._losses.append((trainer.global_step - has_stepped, loss.float().sum() if loss.ndim else loss))
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (every and has_stepped and trainer.global_step % every == 0) or len(self._losses) >= MAX_PENDING_LOSSES:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)

    on_validation_start = on_train_epoch_end  # before others use what the network predicts

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not trainer.training and not trainer.validating:
            return
        self._check(trainer)
        bad = [name for name, one in pl_module.named_parameters() if one.requires_grad and not _is_finite(one)]
        if trainer.strategy.reduce_boolean_decision(bool(bad), all=False):
            step = trainer.global_step - 1
            raise NotFiniteError(
                f"a weight{f' ({bad[0]})' if bad else ''} is NaN or infinite after step {step}, {_advice(trainer)}"
            )

    def _check(self, trainer: Trainer) -> None:
        seen, self._losses = self._losses, []
        finite = torch.isfinite(torch.stack([loss for _, loss in seen])).tolist() if seen else []
        bad = (step for (step, _), is_finite in zip(seen, finite, strict=True) if not is_finite)
        first = next(bad, NO_STEP)
        if trainer.world_size > 1:
            steps = torch.tensor(first, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(steps, torch.distributed.ReduceOp.MIN)
            first = int(steps)
        if first != NO_STEP:
            raise NotFiniteError(f"the loss has been NaN or infinite since step {first}, {_advice(trainer)}")


def _advice(trainer: Trainer) -> str:
    lr = max((float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups), default=0.0)
    is_own = "configure_optimizers" not in vars(trainer.lightning_module)  # the model makes its own optimizer
    lower = "give the model a lower rate" if is_own else "give a lower --optimizer.lr"
    may_clip = getattr(trainer.lightning_module, "automatic_optimization", True) and not trainer.gradient_clip_val
    clip = " clip with --trainer.gradient_clip_val 1," if may_clip else ""
    return f"at learning rate {lr:.3g}: look for NaN in the data,{clip} or {lower}"


def _is_finite(value: Tensor) -> bool:
    local: Any = value.to_local() if hasattr(value, "to_local") else value
    return bool(torch.isfinite(local).all())
