"""Finds the steps of a run that wait for the device."""

from typing import Any

from lightning.pytorch import Callback
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from src.engine.cli.cli import StarterCLI

# Tensor methods that make the program wait for a GPU.
WAITS = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"}


class Waits(TorchFunctionMode):
    """Records calls that read a tensor's value."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in WAITS:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Reads(TorchDispatchMode):
    """Records reads at the dispatcher, such as `bool(tensor)` inside torch's own code."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_local_scalar_dense" in str(func) or "nonzero" in str(func):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class Steps(Callback):
    """Collects the recorded reads per training step, including those while its batch is fetched."""

    def __init__(self, *modes: Waits | Reads) -> None:
        self.modes = modes
        self.steps: list[list[str]] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.steps.append([name for mode in self.modes for name in mode.found])
        for mode in self.modes:
            mode.found.clear()


def waits_by_step(cli: StarterCLI) -> list[list[str]]:
    """Run a command line that `parse` built; returns the names of the waiting calls for each training step."""
    waits, reads = Waits(), Reads()
    cli.trainer.callbacks.append(recorder := Steps(waits, reads))
    with waits, reads:
        cli.run()
    return recorder.steps


LIMITS = (
    "--trainer.limit_train_batches=25",
    "--trainer.max_steps=25",
    "--trainer.limit_val_batches=0",
    "--trainer.log_every_n_steps=10",
)


def check_that_only_log_steps_wait(cli: StarterCLI) -> None:
    """Run 25 steps with `LIMITS`, which logs every tenth, and check that only log steps wait for the device."""
    found = waits_by_step(cli)
    assert len(found) == 25
    assert found[10] or found[9]  # log steps do wait: shows that waits are detected
    # The first step includes one-time work; a log is written at the end of its step or in the next step.
    quiet = [step for number, step in enumerate(found) if number not in (0, 9, 10, 19, 20)]
    assert quiet == [[]] * 20
