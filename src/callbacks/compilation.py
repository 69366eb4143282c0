"""Compiles the network before a run."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from src.errors import InputError


class Compilation(Callback):
    """torch.compile on the task's `net`, in place, so that a checkpoint's keys stay what they are.

    Before training two batches run forward and backward and as in validation, which is when torch compiles; they leave
    no trace in weights, running statistics or random numbers. `seconds` is how long that took.

    Raises:
        InputError: torch cannot compile here.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        net: Any = pl_module.net
        if net._compiled_call_impl is None:
            net.compile()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task: Any = pl_module
        start = time.perf_counter()
        rank_zero_info("Compiling the network ...")
        buffers = {name: value.clone() for name, value in task.net.named_buffers()}
        try:
            with isolate_rng():
                batch = next(iter(trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
                batch = trainer.strategy.batch_to_device(batch)
                # The second, smaller batch makes torch compile for any size, as the last of an epoch needs.
                parts = (batch, tuple(part[: len(part) // 2] for part in batch))
                for part in parts:
                    with trainer.precision_plugin.train_step_context():
                        task.step(part)[0].backward()
                task.zero_grad()
                task.eval()
                for part in parts:
                    with trainer.precision_plugin.val_step_context(), torch.inference_mode():
                        task.step(part)
        except (RuntimeError, ImportError) as error:  # torch's own errors of compilation are among these
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"--compile: torch cannot compile this network here ({reason}): leave it out") from error
        finally:
            task.train()
        for name, value in task.net.named_buffers():
            value.copy_(buffers[name])
        self.seconds = time.perf_counter() - start
        rank_zero_info(f"Compiled in {self.seconds:.0f} s")
