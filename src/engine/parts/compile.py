"""`--compile`: compiles the network with torch.compile before a run."""

import time
from contextlib import nullcontext
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from src.engine.data.loading import Batches
from src.engine.system.errors import GUIDE, InputError

BARE_FLAGS = ("--compile",)


def add_arguments(parser: Any) -> None:
    """Add the option to `src.train`."""
    parser.add_argument("--compile", action="store_true", help="Compile the network with torch.compile")


def callbacks(config: Any, stage: str | None) -> list[Callback]:  # noqa: ARG001
    """The callback of a run with the option."""
    return [Compilation()] if config.compile else []


def extra_seconds(trainer: Trainer) -> dict[str, float]:
    """How long compiling took, which is not training."""
    found = [one for one in trainer.callbacks if isinstance(one, Compilation)]  # type: ignore[attr-defined]
    return {"compile_seconds": found[0].seconds} if found else {}


def input_error(error: BaseException, config: Any) -> InputError | None:
    """The error for the user if torch's compiler raised one in a run with the option."""
    # By the name of its module, so that the compiler is not imported.
    if not config.compile or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return InputError(f"--compile: torch cannot compile this network here ({reason}): leave it out")


class Compilation(Callback):
    """Compiles the task's `net` in place, so that the keys of checkpoints do not change.

    torch compiles on first use, for one size, which is fastest, and again for any size when it sees another one. So
    before training, a batch runs forward and backward; a smaller one too, if the last batch of an epoch is smaller; and
    both in evaluation mode. Weights, running statistics and random state stay unchanged. `seconds` is the time this
    took.

    Raises:
        InputError: the model is not a task with a `net` and a `step`, or the network computes its own losses.
    """

    seconds = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        net: Any = getattr(pl_module, "net", None)
        if net is None or not callable(getattr(pl_module, "step", None)):
            name = type(pl_module).__name__
            raise InputError(f"--compile needs a task such as Classifier, not {name}: it has no net and step; {GUIDE}")
        if hasattr(net, "losses"):
            raise InputError(f"--compile does not reach the losses that {type(net).__name__} computes: leave it out")
        if not getattr(net, "is_compiled", False):
            net.compile()
            net.is_compiled = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task: Any = pl_module
        start = time.perf_counter()
        rank_zero_info("Compiling the network ...")
        modes = [(module, module.training) for module in task.modules()]
        buffers = {name: value.clone() for name, value in task.net.named_buffers()}
        wrapped: Any = trainer.strategy.model
        # In DDP's forward torch splits the network where gradients are sent, so that sending overlaps with computing.
        inside = wrapped._inside_ddp_forward() if isinstance(wrapped, DistributedDataParallel) else nullcontext()
        with isolate_rng(), inside:
            data: Any = trainer.datamodule or task  # type: ignore[attr-defined]
            loader = data.train_dataloader()
            batch = trainer.precision_plugin.convert_input(next(iter(loader)))
            hooked = data if is_overridden("on_before_batch_transfer", data) else task  # as Lightning chooses
            batch = hooked.on_before_batch_transfer(batch, 0)
            batch = trainer.strategy.batch_to_device(batch)
            parts = (batch, _half(batch))
            for part in parts if _may_end_smaller(loader) else parts[:1]:
                with trainer.precision_plugin.train_step_context():
                    task.step(part)[0].backward()
            task.zero_grad()
            task.eval()
            for part in parts:
                with trainer.precision_plugin.val_step_context(), torch.no_grad():
                    task.step(part)
        for module, training in modes:
            module.training = training
        for name, value in task.net.named_buffers():
            value.copy_(buffers[name])
        self.seconds = time.perf_counter() - start
        rank_zero_info(f"Compiled in {self.seconds:.0f} s")


def _half(batch: Any) -> Any:
    """A smaller batch, of any form; parts of another length stay as they are."""
    sizes: list[int] = []
    apply_to_collection(batch, Tensor, lambda one: sizes.append(len(one)) if one.ndim else None)
    size = max(reversed(sizes), key=sizes.count, default=0)  # the usual one, else that of the targets
    return apply_to_collection(batch, Tensor, lambda one: one[: len(one) // 2 + 1] if one.shape[:1] == (size,) else one)


def _may_end_smaller(loader: Any) -> bool:
    """Whether the last batch of an epoch may be smaller than the others; only our own sampler tells."""
    batches = getattr(loader, "sampler", None)
    return not isinstance(batches, Batches) or batches.count % batches.batch_size != 0
