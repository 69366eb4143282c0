"""Which samples are in which batch of which process, and a loader that can go on in the middle of an epoch."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_module, rank_zero_only
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from src.engine.system.errors import InputError
from src.engine.system.randomness import run_seed, seed_of

Order = Callable[[torch.Generator], Iterable[int]]

IGNORED = -100  # the target of what does not count, as in torch's losses


class Indices(list[int]):
    """The samples of one batch of one process.

    `epoch_seed` is a seed of the epoch, for what is random about a sample. Where `is_padding`, none of them counts: a
    process that has nothing left takes part with a sample of another one.
    """

    epoch_seed: int
    is_padding: bool


class Batches(DistributedSampler[Any]):
    """The batches of this process, which with those of the other processes are the batches of one.

    Every process has as many; the order depends on the run's seed and the epoch alone.

    Args:
        count: samples of an epoch.
        batch_size: samples of a batch, all processes together.
        trainer: says how many processes there are and which this is; None is the only one.
        order: the samples of an epoch, drawn with a generator; one after the other where nothing is given.
        drop_single: leave out a last batch that would give a process one sample, or none.

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
        self.start = 0  # batches of the first epoch that are left out, as they were trained on before
        if drop_single and count > batch_size and count % batch_size < 2 * world:
            self.count -= count % batch_size

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        # Drawn when they are asked for: Lightning sets the epoch after it has made the iterator.
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        samples = iter(islice(self.order(generator) if self.order else range(self.count), self.count))
        epoch_seed, start = seed_of(self.seed, self.epoch), self.start
        for _ in range(start):
            next(islice(samples, self.batch_size - 1, None))
        for _ in range(start, len(self)):
            batch = list(islice(samples, self.batch_size))
            indices = Indices(batch[self.rank :: self.num_replicas] or batch[:1])
            indices.epoch_seed = epoch_seed
            indices.is_padding = len(batch) <= self.rank
            yield indices

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; another than the one a run went on in begins with its first batch."""
        if epoch != self.epoch:
            self.start = 0
        super().set_epoch(epoch)


class Batched(Dataset[Any]):
    """A data set whose items are whole batches.

    Args:
        dataset: gives a batch for a list of indices by `__getitems__`, its last part targets (B, ...).
        batch_size: samples of a batch that is asked for by its number, as Lightning does to overfit the first ones.
    """

    def __init__(self, dataset: Any, batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __getitem__(self, place: Indices | int) -> Any:
        if isinstance(place, int):
            first = place * self.batch_size
            return self.dataset.__getitems__(list(range(first, min(first + self.batch_size, len(self.dataset)))))
        try:
            batch = self.dataset.__getitems__(place)
        except Exception as error:
            error.add_note(f"in the batch of samples {', '.join(map(str, place))}")
            raise
        return (*batch[:-1], torch.full_like(batch[-1], IGNORED)) if place.is_padding else batch


class ResumableLoader(DataLoader[Any]):
    """Knows how many batches it has given; Lightning keeps that in checkpoints."""

    given = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.given = getattr(self.sampler, "start", 0)
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands."""
        return {"epoch": getattr(self.sampler, "epoch", 0), "given": self.given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where another one stood; before the first batch."""
        if isinstance(self.sampler, Batches):
            self.sampler.set_epoch(state_dict["epoch"])
            self.sampler.start = state_dict["given"]


def batch_loader(dataset: Any, batches: Batches, *, num_workers: int = 0, on_device: bool = False) -> DataLoader[Any]:
    """A loader of whole batches, from data that is on the device already or is not."""
    # Lightning's advice to add worker processes would only cost time here.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    return ResumableLoader(
        Batched(dataset, batches.batch_size // batches.num_replicas),
        batch_size=None,
        sampler=batches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available() and not on_device,
        collate_fn=already_a_batch,
    )


def shuffled(count: int) -> Order:
    """Every sample once, in random order."""
    return lambda generator: torch.randperm(count, generator=generator).tolist()


def check_batch_size(batch_size: int, processes: int) -> None:
    """Raise InputError where processes cannot share a batch evenly."""
    if batch_size % processes:
        near = batch_size // processes * processes
        choice = f"{near} or {near + processes}" if near else f"{processes}"
        raise InputError(
            f"--data.batch_size {batch_size} is the batch of all {processes} processes together, and they cannot share"
            f" it evenly: give {choice}"
        )


def already_a_batch(batch: Any) -> Any:
    """In place of collation; a function with a name, so that worker processes can be given it."""
    return batch


def announce(line: str) -> None:
    """Say something, once and also under --quiet, that changes what results mean."""
    rank_zero_only(rank_zero_module.log.warning)(line)
