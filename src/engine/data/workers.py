"""How many processes read the files of a DataModule."""

from typing import Any, Literal

from src.engine.system.cores import cores_per_process
from src.engine.system.errors import InputError

NumWorkers = int | Literal["auto"]

MAX_WORKERS = 16  # that are chosen; more can be given


def check_num_workers(given: NumWorkers) -> None:
    """Raise InputError if a number of worker processes is below 0."""
    if given != "auto" and given < 0:
        raise InputError(f"num_workers {given} is out of range: give at least 0, or auto")


def file_workers(given: NumWorkers, trainer: Any) -> int:
    """The number of worker processes for data that are read from files; resolves `auto`.

    A network on a CPU uses all cores itself, so that worker processes would slow it down: `auto` gives none, and the
    dataset can use threads. Otherwise it leaves one core of this process for the training.
    """
    if given != "auto":
        return given
    on_cpu = trainer is None or trainer.strategy.root_device.type == "cpu"
    return 0 if on_cpu else max(1, min(cores_per_process(trainer) - 1, MAX_WORKERS))
