"""Logs training speed."""

import math
import time
from copy import deepcopy
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops, measure_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from src.engine.system.batches import batch_size
from src.engine.system.errors import InputError

# dtype by the start of the name of Lightning's precision; all others compute in float32.
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}


def callbacks(config: Any, stage: str | None) -> list[Callback]:
    """The callback of every run with a logger and log steps."""
    trainer = config.trainer
    return [] if stage == "predict" or trainer.logger is False or trainer.log_every_n_steps == 0 else [Throughput()]


class Throughput(Callback):
    """Logs the training speed since the last log step, all devices together, without validation.

    Logs `speed/samples_per_second`; for sequences of tokens `speed/tokens_per_second`, padding included; and if
    Lightning knows the chip's peak, `speed/mfu`, the model FLOP utilisation (Chowdhery et al. 2022). Lightning's
    ThroughputMonitor waits for the GPU in every step; this callback waits at log steps only.

    Raises:
        InputError: the run has no log steps.
    """

    def __init__(self) -> None:
        self._every = 0
        self._logged_step = 0
        self._peak: float | None = None
        self._batch_flops: float | None = None
        self._started = 0.0
        self._batches = self._tokens = 0
        self._samples = 0.0  # NaN if batches do not say their size

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not self._every:
            raise InputError("Throughput needs log steps: give --trainer.log_every_n_steps, or remove the callback")
        dtype = next((dtype for name, dtype in DTYPES.items() if trainer.precision.startswith(name)), torch.float32)
        self._peak = get_available_flops(trainer.strategy.root_device, dtype)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged_step = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        self._samples += batch_size(batch)
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        if isinstance(inputs, Tensor) and inputs.ndim == 2 and not inputs.is_floating_point():
            self._tokens += inputs.numel()
        # The Trainer increments global_step before this hook, and logs at multiples.
        if trainer.global_step % self._every or trainer.global_step == self._logged_step:
            return
        self._logged_step = trainer.global_step
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        per_second = trainer.world_size / (time.perf_counter() - self._started)
        speed = {} if math.isnan(self._samples) else {"speed/samples_per_second": self._samples * per_second}
        if self._tokens:
            speed["speed/tokens_per_second"] = self._tokens * per_second
        if self._peak:
            if self._batch_flops is None:
                self._batch_flops = _flops_or_none(pl_module, batch)
            if self._batch_flops is None:
                self._peak = None
            else:
                flops = self._batch_flops * self._batches * per_second / trainer.world_size
                speed["speed/mfu"] = flops / self._peak
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in speed.items()})
        for logger in (
            trainer.loggers if speed else ()
        ):  # directly, so that the values are logged before a checkpoint of this step
            logger.log_metrics(speed, trainer.global_step - 1)
        self._restart()

    def _restart(self) -> None:
        self._started = time.perf_counter()
        self._samples = 0.0
        self._batches = self._tokens = 0


def _flops_or_none(pl_module: LightningModule, batch: Any) -> float | None:
    try:
        return training_flops(pl_module.net, batch)  # type: ignore[arg-type]
    except Exception as error:  # not every network runs without real data
        rank_zero_warn(f"speed/mfu is left out: the operations of a step cannot be counted ({error})")
        return None


def training_flops(net: torch.nn.Module, batch: Any) -> float:
    """Floating-point operations of a forward and backward pass over a batch, counted without computing them."""
    inputs = [part.to("meta") for part in batch[:-1]]
    copy = deepcopy(net).to("meta")
    return measure_flops(copy, lambda: copy(*inputs), loss_fn=lambda outputs: outputs.float().sum())
