"""Compiles the network before a run."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from src.engine.system.errors import InputError


class Compilation(Callback):
    """torch.compile on the task's `net`, in place, so that a checkpoint's keys stay what they are.

    Before training two batches run forward and backward and as in validation, which is when torch compiles; they leave
    no trace in weights, running statistics or random numbers. `seconds` is how long that took.

    Raises:
        InputError: torch cannot compile here, or the model is no task with a `net` and a `step`.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        net: Any = getattr(pl_module, "net", None)
        if net is None or not callable(getattr(pl_module, "step", None)):
            raise InputError(f"--compile needs a task such as ImageClassifier, and {type(pl_module).__name__} is none")
        if not is_compiled(net):
            net.compile()
            net.is_compiled = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task: Any = pl_module
        start = time.perf_counter()
        rank_zero_info("Compiling the network ...")
        modes = [(module, module.training) for module in task.modules()]
        buffers = {name: value.clone() for name, value in task.net.named_buffers()}
        try:
            with isolate_rng():
                batch = next(iter(trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
                batch = trainer.strategy.batch_to_device(batch)
                # The second, smaller batch makes torch compile for any size, as the last of an epoch needs.
                parts = (batch, tuple(part[: len(part) // 2 + 1] for part in batch))
                for part in parts:
                    with trainer.precision_plugin.train_step_context():
                        task.step(part)[0].backward()
                task.zero_grad()
                task.eval()
                for part in parts:
                    with trainer.precision_plugin.val_step_context(), torch.no_grad():
                        task.step(part)
        except (RuntimeError, ImportError) as error:
            if not is_of_compiler(error):
                raise
            raise cannot_compile(error) from error
        for module, training in modes:
            module.training = training
        for name, value in task.net.named_buffers():
            value.copy_(buffers[name])
        self.seconds = time.perf_counter() - start
        rank_zero_info(f"Compiled in {self.seconds:.0f} s")


def is_compiled(net: Any) -> bool:
    """Whether a run with `--compile` has compiled a network."""
    return getattr(net, "is_compiled", False)


def is_of_compiler(error: BaseException) -> bool:
    """Whether torch's compiler raised an error; its modules are not loaded to find out."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def cannot_compile(error: BaseException) -> InputError:
    """What to tell the user of torch's error."""
    reason = str(error).strip().splitlines()[0]
    return InputError(f"--compile: torch cannot compile this network here ({reason}): leave it out")
