"""OneCycleLR and CosineAnnealingLR with learning rate and length taken from the run.

On the command line they replace torch's classes of the same name. `total_steps` or `T_max` left at None becomes the
run's length; the learning rate is always the optimizer's.
"""

import warnings
from typing import Any, Literal

from torch.optim import Optimizer, lr_scheduler

from src.engine.system.errors import InputError


class _Continued(lr_scheduler.LRScheduler):
    """A schedule whose position is restored, but not its length: a continued run may be longer."""

    length: str  # name of the attribute

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position; if the length has changed, the next step is at the rate of the new schedule.

        Raises InputError if this run's schedule is over before that position.
        """
        position, steps = state_dict.get("last_epoch", 0), getattr(self, self.length)
        is_changed = state_dict.get(self.length, steps) != steps
        if is_changed and position >= steps:
            way = "give more --max_epochs, or the checkpoint's --data.batch_size and --lr_scheduler_interval"
            raise InputError(
                f"the checkpoint is at step {position} of a schedule with {steps} steps in this run: {way}"
            )
        left_out = (self.length, "_schedule_phases")
        super().load_state_dict({name: value for name, value in state_dict.items() if name not in left_out})
        if is_changed:  # else the rate of the checkpoint is the next one, bit by bit
            with warnings.catch_warnings(action="ignore"):  # torch's, to ask for the last rate instead
                self._last_lr = getattr(self, "_get_closed_form_lr", self.get_lr)()
            for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
                group["lr"] = lr


class OneCycleLR(_Continued, lr_scheduler.OneCycleLR):
    """Warm up to the optimizer's learning rate, then anneal to nearly zero (Smith and Topin 2018).

    Args:
        optimizer: its learning rate is the peak of the cycle.
        total_steps: optimizer steps of the whole cycle. Default: the run's length.
        pct_start: share of the steps spent warming up, in (0, 1).
        anneal_strategy: shape of the annealing.
        cycle_momentum: whether momentum (or beta1) moves opposite to the learning rate instead of staying fixed.
        base_momentum: momentum at the peak learning rate.
        max_momentum: momentum at the lowest learning rate.
        div_factor: peak learning rate divided by the first one.
        final_div_factor: first learning rate divided by the last one.
    """

    length = "total_steps"

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = False,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        # Each parameter group may have its own learning rate.
        max_lr: list[float] = [group["lr"] for group in optimizer.param_groups]
        if total_steps is not None and pct_start * total_steps == 1:
            pct_start *= 1.01  # else torch divides by zero for a warm-up of one step
        options: dict[str, Any] = {"pct_start": pct_start, "anneal_strategy": anneal_strategy}
        options |= {"cycle_momentum": cycle_momentum, "base_momentum": base_momentum, "max_momentum": max_momentum}
        options |= {"div_factor": div_factor, "final_div_factor": final_div_factor}
        super().__init__(optimizer, max_lr, total_steps, **options)

    def get_lr(self) -> Any:
        """The next learning rates; a group that was added later, as by BackboneFinetuning, follows the first one."""
        if self.last_epoch > self.total_steps:
            way = "leave out --lr_scheduler.total_steps, or give --trainer.max_steps"
            raise InputError(f"the schedule is over after {self.total_steps} steps, and the run is not: {way}")
        first, *others = self.optimizer.param_groups
        for group in others:
            if "max_lr" not in group:
                ratio = group["lr"] / first["lr"]
                group |= {name: ratio * first[name] for name in ("initial_lr", "max_lr", "min_lr")}
                group |= {name: value for name, value in first.items() if name not in group}  # momentum of the cycle
        return super().get_lr()


class CosineAnnealingLR(_Continued, lr_scheduler.CosineAnnealingLR):
    """Half a cosine from the optimizer's learning rate down to `eta_min` (Loshchilov and Hutter 2017).

    Args:
        optimizer: its learning rate is the first of the schedule.
        T_max: steps (or epochs, by the scheduler's interval) until `eta_min`. Default: the run's length.
        eta_min: the lowest learning rate.

    Raises:
        ValueError: `T_max` is missing outside of a run.
    """

    length = "T_max"

    def __init__(self, optimizer: Optimizer, T_max: int | None = None, eta_min: float = 0.0) -> None:  # noqa: N803
        if T_max is None:
            raise ValueError("CosineAnnealingLR needs T_max outside of a run")
        super().__init__(optimizer, T_max, eta_min)
