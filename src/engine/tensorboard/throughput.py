"""Logs training speed."""

import math
import re
import time
import warnings
from copy import deepcopy
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops, measure_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from src.engine.system.batches import batch_size
from src.engine.system.cores import cores_per_process
from src.engine.system.errors import InputError
from src.engine.tensorboard.writers import logged_step

MAX_WAIT = 0.2  # share of the time that training may wait for data without advice
MIN_SECONDS = 20.0  # of training before advice: in a short run, starting up takes most of the time
MIN_BLOCKED = 0.05  # if the program waits for the device this share of the time, the device does not wait for data
# dtype by the start of the name of Lightning's precision; all others compute in float32.
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
# Operations per second in bfloat16 and float16 of chips that Lightning does not know, or whose tensor cores it does not
# count, or with sparsity (NVIDIA's data sheets).
DENSE = {"h200 nvl": 835.5e12, "h200": 989.4e12, "h100 nvl": 835.5e12, "l40s": 362e12, "l40": 181e12}
DENSE |= {"a40": 149.7e12, "a6000": 154.8e12, "rtx 4090": 165.2e12, "rtx 3090": 71e12}


def callbacks(config: Any, stage: str | None) -> list[Callback]:
    """The callback of every run with a logger and log steps."""
    trainer = config.trainer
    return [] if stage == "predict" or trainer.logger is False or trainer.log_every_n_steps == 0 else [Throughput()]


class Throughput(Callback):
    """Logs the training speed since the last log step, all devices together, without validation.

    Logs `speed/samples_per_second`; for sequences of tokens `speed/tokens_per_second`, padding included; and
    `speed/mfu`, the model FLOP utilisation (Chowdhery et al. 2022), if Lightning knows the chip's peak and the
    network's operations can be counted: not with FSDP2, nor if it returns several tensors. Lightning's
    ThroughputMonitor waits for the GPU in every step; this callback waits at log steps only. If training waits for data
    more than a fifth of the time, prints once what to do.

    Raises:
        InputError: the run has no log steps.
    """

    _peak: float | None = None
    _value_flops = -1.0  # per value of the inputs; not counted yet
    _totals: list[float] | None = None  # seconds of training, waited for data, and blocked by the device

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not self._every:
            raise InputError("Throughput needs log steps: give --trainer.log_every_n_steps, or remove the callback")
        dtype = next((dtype for name, dtype in DTYPES.items() if trainer.precision.startswith(name)), torch.float32)
        self._peak = peak_flops(trainer.strategy.root_device, dtype)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged_step = trainer.global_step
        self.on_train_epoch_start(trainer, pl_module)  # Lightning omits it in a run that continues within an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()
        self._waited_before = getattr(trainer.profiler, "waited", 0.0)  # type: ignore[attr-defined]
        self._samples = 0.0  # NaN if batches do not say their size
        self._values = self._tokens = 0

    on_validation_end = on_train_epoch_start

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._samples += batch_size(batch)
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        size = inputs.numel() if isinstance(inputs, Tensor) else 0
        self._values += size  # not batches, which may differ in size
        if isinstance(inputs, Tensor) and inputs.ndim == 2 and not inputs.is_floating_point():
            self._tokens += size
        # The Trainer increments global_step before this hook, and logs at multiples.
        if trainer.global_step % self._every or trainer.global_step == self._logged_step:
            return
        self._logged_step = trainer.global_step
        before = time.perf_counter() if trainer.strategy.root_device.type == "cuda" else None
        if before is not None:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._add_waits(trainer, now - self._started, 0.0 if before is None else now - before)
        per_second = trainer.world_size / (now - self._started)
        speed = {} if math.isnan(self._samples) else {"speed/samples_per_second": self._samples * per_second}
        if self._tokens:
            speed["speed/tokens_per_second"] = self._tokens * per_second
        if self._peak and self._value_flops < 0:
            try:
                self._value_flops = training_flops(pl_module.net, batch) / size
            except Exception:  # not every network runs without real data, returns one tensor, or can be copied
                self._peak = None
        if self._peak:
            flops = self._value_flops * self._values * per_second / trainer.world_size
            speed["speed/mfu"] = flops / self._peak
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in speed.items()})
        # Directly, so that the values are logged before a checkpoint of this step.
        for logger in trainer.loggers if speed else ():
            logger.log_metrics(speed, logged_step(trainer, pl_module, trainer.global_step - 1))
        self.on_train_epoch_start(trainer, pl_module)

    def _add_waits(self, trainer: Trainer, seconds: float, blocked: float) -> None:
        waited = getattr(trainer.profiler, "waited", None)  # type: ignore[attr-defined]
        if self._totals is None:  # the first steps start worker processes and compile
            self._totals = [0.0, 0.0, 0.0]
        elif waited is not None and not math.isnan(self._totals[0]):
            new = (seconds, waited - self._waited_before, blocked)
            self._totals = total, waits, blocks = [a + b for a, b in zip(self._totals, new, strict=True)]
            if total >= MIN_SECONDS and waits > MAX_WAIT * total and blocks < MIN_BLOCKED * total:
                rank_zero_info(f"Training waits for data {waits / total:.0%} of the time: {faster_data(trainer)}")
                self._totals[0] = math.nan  # say it once


def faster_data(trainer: Any) -> str:
    """What to do if training waits for data."""
    data, loader = trainer.datamodule, trainer.train_dataloader
    own = trainer.strategy.root_device.type != "cpu"  # a core for the training itself
    most = max(1, cores_per_process(trainer) - own)
    has_more = getattr(loader, "num_workers", 0) < most
    options = ["--data.cache true"] if getattr(data, "cache", None) is False else []
    given = getattr(data, "num_workers", None)
    if has_more and given is not None and (own or given != "auto"):
        options.append(f"--data.num_workers {most}")
    if options:
        return f"give {' or '.join(options)}"
    if has_more and given is None:
        return f"give the DataLoader of the training part num_workers={most}"
    return "store smaller or simpler files, such as images of the size that is needed"


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The most operations per second of a chip, without sparsity, or None if they are not known."""
    warnings.filterwarnings("ignore", "FLOPs not found|.* does not support (torch|tfloat)")  # then there is no mfu
    name = torch.cuda.get_device_name(device).lower() if device.type == "cuda" else ""
    dense = next((value for chip, value in DENSE.items() if re.search(rf"\b{chip}\b(?! ti)", name)), None)
    return dense if dense and dtype in (torch.bfloat16, torch.float16) else get_available_flops(device, dtype)


def training_flops(net: torch.nn.Module, batch: Any) -> float:
    """Floating-point operations of a forward and backward pass over a batch, counted without computing them."""
    inputs = [part.to("meta") for part in batch[:-1]]
    # Without values: a second copy of the weights may not fit, and would count as memory of the run.
    memo: dict[int, Any] = {id(one): torch.nn.Parameter(one.to("meta"), one.requires_grad) for one in net.parameters()}
    memo |= {id(one): one.to("meta") for one in net.buffers()}
    copy = deepcopy(net, memo).to("meta")
    return measure_flops(copy, lambda: copy(*inputs), loss_fn=lambda outputs: outputs.float().sum())
