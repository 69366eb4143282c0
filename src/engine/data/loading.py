"""Assigns samples to batches and processes; a loader that can resume in the middle of an epoch."""

import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch.utilities.rank_zero import rank_zero_module, rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, default_collate, get_worker_info

from src.engine.system.errors import InputError
from src.engine.system.randomness import derive_seed, run_seed

Order = Callable[[torch.Generator], Iterable[int]]

IGNORED = -100  # target that losses and metrics ignore, as in torch
# How worker processes start; Python 3.14 would not share a cache of images with them. Elsewhere: Python's default.
START_METHOD = "fork" if sys.platform == "linux" else None


class Indices(list[int]):
    """Sample indices of one batch of one process.

    `epoch_seed` seeds the random augmentation of samples, different in each epoch; 0 for samples in a fixed order, so
    that every evaluation sees the same. If `is_padding`, the samples do not count: this process has none left, and
    repeats a sample of another process.
    """

    epoch_seed: int
    is_padding: bool


class Batches(DistributedSampler[Any]):
    """Sampler of this process's share of every batch.

    Together the shares of all processes are the batches of a single process. Every process gets the same number of
    batches; the order depends only on the run's seed and the epoch.

    Args:
        count: samples per epoch.
        batch_size: samples per batch, all processes together.
        trainer: gives the number of processes and the rank of this one; None: a single process.
        order: draws the samples of an epoch from a generator. Default: 0, 1, 2, ...
        drop_single: drop the last batch if a process would get one sample of it, or none.

    Raises:
        InputError: the processes cannot share a batch evenly.
    """

    def __init__(
        self, count: int, batch_size: int, trainer: Any, order: Order | None = None, drop_single: bool = False
    ) -> None:
        world, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        check_batch_size(batch_size, world)
        super().__init__(range(count), world, rank, seed=run_seed())  # type: ignore[arg-type]
        self.count = count
        self.batch_size = batch_size
        self.order = order
        self.start = 0  # batches to skip once: trained on before the run was stopped
        self.is_alone = trainer is None
        self.is_for_gpu = trainer is not None and trainer.strategy.root_device.type == "cuda"
        if drop_single and count > batch_size and count % batch_size < 2 * world:
            self.count -= count % batch_size

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        if self.is_alone and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise InputError("each process would get every batch: give the Trainer the DataModule, not its loaders")
        # Drawn lazily: Lightning sets the epoch after creating the iterator.
        epoch_seed = derive_seed(self.seed, self.epoch) if self.order else 0
        start, self.start = self.start, 0  # once: beside a longer loader this one restarts within the epoch
        generator = torch.Generator().manual_seed(epoch_seed)
        order = self.order(generator) if self.order else range(self.count)
        samples = islice(order, start * self.batch_size, self.count)
        for _ in range(start, len(self)):
            batch = list(islice(samples, self.batch_size))
            indices = Indices(batch[self.rank :: self.num_replicas] or batch[:1])
            indices.epoch_seed = epoch_seed
            indices.is_padding = len(batch) <= self.rank
            yield indices

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. Only the epoch in which a run resumes skips batches."""
        if epoch != self.epoch:
            self.start = 0
        super().set_epoch(epoch)


class Batched(Dataset[Any]):
    """A dataset whose items are whole batches, of what `dataset.__getitems__` returns; targets (B, ...) come last.

    Lightning asks for batches of `batch_size` by number with `overfit_batches`.
    """

    def __init__(self, dataset: Any, batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __getitem__(self, key: Indices | int) -> Any:
        if isinstance(key, int):
            first = key * self.batch_size
            return self._batch(list(range(first, min(first + self.batch_size, len(self.dataset)))))
        try:
            batch = self._drawn(key)
        except Exception as error:
            error.add_note(f"in the batch of samples {', '.join(map(str, key))}")
            raise
        if not key.is_padding:
            return batch
        if not isinstance(batch, tuple | list):
            raise InputError(
                "several processes can share only a batch that is a tuple with the targets last: return such a tuple,"
                " or give a batch_size that divides the number of samples"
            )
        ignored = torch.nan if batch[-1].is_floating_point() else IGNORED
        unsigned = batch[-1].dtype in (torch.bool, torch.uint8)
        return (*batch[:-1], torch.full_like(batch[-1], ignored, dtype=torch.int64 if unsigned else None))

    def _drawn(self, indices: Indices) -> Any:
        """A batch whose random numbers, of torch, NumPy and Python, depend only on run seed, epoch and first sample."""
        if not indices.epoch_seed or getattr(self.dataset, "draws_by_itself", False):
            return self._batch(indices)
        with isolate_rng(include_cuda=False):
            seed = derive_seed(indices.epoch_seed, *indices[:1])
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            return self._batch(indices)

    def _batch(self, indices: list[int]) -> Any:
        """A batch; samples, as torch's own datasets return, are collated."""
        get = getattr(self.dataset, "__getitems__", None)
        found = get(indices) if get else [self.dataset[index] for index in indices]
        first = found[0] if isinstance(found, list) and found else None
        if isinstance(first, dict) and not _returns_batches(self.dataset):
            return default_collate(found)
        return tuple(default_collate(found)) if isinstance(first, tuple | list) else found


def _returns_batches(dataset: Any) -> bool:
    """Whether a list of dicts from `__getitems__` is a batch; from Hugging Face's datasets it is samples."""
    while isinstance(dataset, Subset):  # which passes on what its dataset returns
        dataset = dataset.dataset
    own = getattr(dataset, "__getitems__", None)
    return own is not None and not str(getattr(own, "__module__", "")).startswith("datasets.")


class ResumableLoader(DataLoader[Any]):
    """Counts the batches it has returned; Lightning saves the count in checkpoints."""

    given = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.given = getattr(self.sampler, "start", 0)
        try:
            for batch in super().__iter__():
                self.given += 1
                yield batch
        except Exception as error:
            if not self.num_workers:
                raise
            # Drop torch's frames: they refer to the error and would keep the workers for 5 s. Its text has the trace.
            raise error.with_traceback(None) from None

    def state_dict(self) -> dict[str, int]:
        """Epoch, and number of batches returned in it."""
        return {"epoch": getattr(self.sampler, "epoch", 0), "given": self.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume from a saved position; call it before the first batch."""
        if isinstance(self.sampler, Batches):
            epoch, given = state_dict["epoch"], state_dict["given"]
            if not 0 <= given <= len(self.sampler):
                raise InputError(
                    f"the checkpoint is at batch {given} of an epoch, which has {len(self.sampler)} batches:"
                    " give the data and batch size it was saved with"
                )
            self.sampler.set_epoch(epoch)
            self.sampler.start = given


def batch_loader(dataset: Any, batches: Batches, *, num_workers: int = 0, on_device: bool = False) -> DataLoader[Any]:
    """A loader of whole batches; `on_device`: the dataset returns them on the device, so memory is not pinned."""
    cores = os.cpu_count() or 1
    if num_workers > 16 * cores:
        raise InputError(f"num_workers {num_workers} is too many for {cores} cores: give at most {16 * cores}")
    # Lightning advises more worker processes, which would be slower here.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    return ResumableLoader(
        Batched(dataset, batches.batch_size // batches.num_replicas),
        sampler=batches,
        persistent_workers=num_workers > 0,
        pin_memory=batches.is_for_gpu and not on_device,
        **whole_batches(num_workers),
    )


def whole_batches(num_workers: int) -> dict[str, Any]:
    """The arguments of a loader whose dataset returns whole batches."""
    return {
        "batch_size": None,
        "collate_fn": already_a_batch,
        "num_workers": num_workers,
        "multiprocessing_context": START_METHOD if num_workers else None,
        "worker_init_fn": _init_worker,
    }


def _init_worker(worker_id: int) -> None:
    """Set up a worker process: Lightning's seeds, and signals only from the run, which may still need data.

    Terminals and `timeout` send Ctrl-C and SIGTERM to all processes of a group, schedulers to all processes of a job.
    Programs that a dataset starts here inherit the blocked SIGTERM: end them with kill(), not with terminate().
    """
    pl_worker_init_function(worker_id)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    if hasattr(signal, "sigwaitinfo"):  # not on a Mac
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for, args=(os.getppid(),), daemon=True).start()


def _end_for(parent: int) -> None:
    """End this process when its parent sends SIGTERM."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def shuffled(count: int) -> Order:
    """A random order of `count` samples."""
    return lambda generator: torch.randperm(count, generator=generator).tolist()


def check_batch_size(batch_size: int, processes: int) -> None:
    """Raise InputError if processes cannot share a batch evenly."""
    if batch_size % processes:
        near = batch_size // processes * processes
        choice = f"{near} or {near + processes}" if near else f"{processes}"
        raise InputError(
            f"--data.batch_size {batch_size} is shared by all {processes} processes and cannot be divided evenly:"
            f" give {choice}, or fewer --devices"
        )


def check_batch_size_of(data: Any, processes: int) -> None:
    """Check the batch size of a DataModule that uses `Batches`; with any other, each process has its own batches."""
    if any(hasattr(sys.modules.get(cls.__module__), "Batches") for cls in type(data).__mro__):
        check_batch_size(getattr(data, "batch_size", 0), processes)


def already_a_batch(batch: Any) -> Any:
    """Collate function for whole batches; not a lambda, so that it can be sent to worker processes."""
    if get_worker_info() is not None:  # here a lack of shared memory is an error of the run; later it would hang
        apply_to_collection(batch, Tensor, lambda one: one.share_memory_() if one.layout == torch.strided else one)
    return batch


def announce(line: str) -> None:
    """Print a warning about what results mean: on one process only, also with --quiet."""
    worker = get_worker_info()
    if worker is None or worker.id == 0:
        rank_zero_only(rank_zero_module.log.warning)(line)
