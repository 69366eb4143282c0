"""Samples of each batch and process."""

import multiprocessing
import random
import signal
import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from src.engine.cli.cli import StarterCLI
from src.engine.data.loading import (
    IGNORED,
    Batched,
    Batches,
    announce,
    batch_loader,
    shuffled,
)
from src.engine.system.errors import InputError, machine_fault


class Numbers:
    """Samples whose target is their index."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(indices), 4), torch.tensor(indices)


def process(rank: int, world: int, device: str = "cpu") -> Any:
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(world_size=world, global_rank=rank, strategy=strategy)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batches_of_one(world: int) -> None:
    whole = list(Batches(1001, 32, None, shuffled(1001)))
    parts = [list(Batches(1001, 32, process(rank, world), shuffled(1001))) for rank in range(world)]
    assert {len(part) for part in parts} == {len(whole)} == {32}
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(index for share in shares for index in share if not share.is_padding) == sorted(batch)


def test_a_process_without_samples_takes_part_but_does_not_count() -> None:
    data = Numbers(1001)
    shares = [list(batch_loader(data, Batches(1001, 500, process(rank, 2)))) for rank in range(2)]
    assert [[len(targets) for _, targets in share] for share in shares] == [[250, 250, 1], [250, 250, 1]]
    assert shares[0][-1][1].tolist() == [1000]
    assert shares[1][-1][1].tolist() == [IGNORED]
    counted = torch.cat([targets for share in shares for _, targets in share])
    assert sorted(counted[counted != IGNORED].tolist()) == list(range(1001))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_padding_of_labels_that_are_true_or_false_is_neither(dtype: torch.dtype) -> None:
    data = Numbers(1)
    data.__class__ = type(
        "Facts", (Numbers,), {"__getitems__": lambda _, rows: (torch.ones(1), torch.ones(1, dtype=dtype))}
    )
    (batch,) = batch_loader(data, Batches(1, 2, process(1, 2)))
    assert batch[1].tolist() == [IGNORED]


def test_a_batch_size_that_processes_cannot_share_is_an_error() -> None:
    with pytest.raises(InputError, match=r"batch_size 33 is shared by all 2 processes .* give 32 or 34"):
        Batches(100, 33, process(0, 2))
    with pytest.raises(InputError, match="give 4"):
        Batches(100, 3, process(0, 4))


def test_a_loader_resumes_from_a_saved_position() -> None:
    data = Numbers(100)

    def loader() -> Any:
        return batch_loader(data, Batches(100, 8, None, shuffled(100)))

    first = loader()
    first.sampler.set_epoch(3)
    batches = iter(first)
    for _ in range(5):
        next(batches)
    state = first.state_dict()
    rest = [targets.tolist() for _, targets in batches]
    second = loader()
    second.load_state_dict(state)
    second.sampler.set_epoch(3)
    assert [targets.tolist() for _, targets in second] == rest
    second.sampler.set_epoch(4)
    assert len(list(second)) == 13  # the next epoch is whole


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_do_not_change_the_batches(workers: int) -> None:
    data = Numbers(50)
    loader = batch_loader(data, Batches(50, 8, None, shuffled(50)), num_workers=workers)
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    order = Batches(50, 8, None, shuffled(50))
    order.set_epoch(1)
    assert [targets.tolist() for _, targets in loader] == [list(batch) for batch in order]


class Drawn(Numbers):
    """Samples with random numbers of each kind, as augmentations of one's own draw them."""

    def __getitems__(self, rows: Any) -> tuple[Tensor, Tensor]:
        numbers = [(torch.rand(()).item(), np.random.rand(), random.random()) for _ in rows]
        return torch.tensor(numbers), torch.tensor([*rows])


def drawn(workers: int, epoch: int = 1, skip: int = 0) -> list[Any]:
    loader = batch_loader(Drawn(20), Batches(20, 4, None, shuffled(20)), num_workers=workers)
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    loader.load_state_dict({"epoch": epoch, "given": skip})
    return [numbers.tolist() for numbers, _ in loader]


def test_random_numbers_of_a_dataset_depend_on_epoch_and_samples_only() -> None:
    before = random.getstate()
    alone = drawn(0)
    assert drawn(2) == drawn(0) == alone
    assert drawn(1, skip=3) == alone[3:]  # a run that continues within the epoch
    assert drawn(0, epoch=2) != alone
    assert len({str(batch) for batch in alone}) == 5
    assert random.getstate() == before


def test_loaders_without_a_trainer_are_refused_in_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(InputError, match="give the Trainer the DataModule, not its loaders"):
        next(iter(Batches(20, 4, None)))
    assert next(iter(Batches(20, 4, process(0, 2)))) == [0, 2]


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="needs Linux's signals, and /proc")
def test_a_worker_process_ends_when_the_run_says_so_and_not_for_others() -> None:
    loader = batch_loader(Numbers(50), Batches(50, 2, None), num_workers=1)
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # as a scheduler ends all processes of a job
    assert len(list(batches)) == 24
    del batches
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


def test_a_lack_of_shared_memory_is_an_error_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", fails)
    loader = batch_loader(Numbers(50), Batches(50, 2, None), num_workers=1)
    with pytest.raises(RuntimeError, match="allocate shared memory") as error:
        next(iter(loader))
    assert str(machine_fault(error.value)).startswith("too little shared memory: give num_workers 0, or docker")


def test_memory_is_pinned_for_a_gpu_that_the_run_uses() -> None:
    for device, on_device, is_pinned in (("cuda", False, True), ("cuda", True, False), ("cpu", False, False)):
        batches = Batches(8, 4, process(0, 1, device))
        assert batch_loader(Numbers(8), batches, on_device=on_device).pin_memory is is_pinned


def test_batches_can_be_read_by_number_for_overfitting() -> None:
    data = Batched(Numbers(10), 4)
    assert [data[number][1].tolist() for number in range(len(data))] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_last_batch_of_one_sample_can_be_dropped() -> None:
    assert len(Batches(33, 8, None, drop_single=True)) == 4
    assert len(Batches(34, 8, None, drop_single=True)) == 5
    assert len(Batches(35, 8, process(0, 2), drop_single=True)) == 4


def test_announcements_are_printed_under_quiet_too(parse: Callable[..., StarterCLI], messages: list[str]) -> None:
    parse("--quiet")
    del messages[:]
    announce("*** NOT THE REAL DATA ***")
    assert messages == ["*** NOT THE REAL DATA ***"]


def test_neighbouring_seeds_do_not_share_the_order_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    for seed, epoch in ((1, 1), (2, 0)):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        batches = Batches(50, 5, None, shuffled(50))
        batches.set_epoch(epoch)
        orders.append([index for batch in batches for index in batch])
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


@pytest.mark.parametrize("given", [0, 3, 5])
def test_a_loader_that_starts_again_within_an_epoch_starts_at_its_first_batch(given: int) -> None:
    loader = batch_loader(Numbers(10), Batches(10, 2, None, shuffled(10)))  # type: ignore[arg-type]
    first, second = ([batch[1].tolist() for batch in loader] for _ in range(2))
    assert first == second
    loader.load_state_dict({"epoch": 0, "given": given})  # type: ignore[attr-defined]
    assert [batch[1].tolist() for batch in loader] == first[given:]
    assert [batch[1].tolist() for batch in loader] == first
    assert loader.state_dict() == {"epoch": 0, "given": 5}  # type: ignore[attr-defined]


@pytest.mark.parametrize("has_items", [True, False])
def test_samples_of_torchs_own_datasets_are_collated(has_items: bool) -> None:
    rows: Any = TensorDataset(torch.arange(10.0).view(10, 1), torch.arange(10))
    rows = Subset(rows, range(10)) if has_items else rows
    x, y = next(iter(batch_loader(rows, Batches(10, 4, None))))
    assert (x.tolist(), y.tolist()) == ([[0], [1], [2], [3]], [0, 1, 2, 3])
    ((_, padding),) = batch_loader(rows, Batches(1, 2, process(1, 2)))
    assert padding.tolist() == [IGNORED]


@pytest.mark.slow
def test_samples_of_hugging_face_are_collated() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"x": [[0.0], [1.0]]}).with_format("torch")
    assert next(iter(batch_loader(rows, Batches(2, 2, None))))["x"].tolist() == [[0], [1]]


def test_dicts_are_collated_and_not_shared_by_processes() -> None:
    rows: Any = [{"x": torch.full((2,), float(number))} for number in range(4)]
    for one in (rows, Subset(rows, range(4))):
        assert next(iter(batch_loader(one, Batches(4, 2, None))))["x"].tolist() == [[0, 0], [1, 1]]
    own: Any = SimpleNamespace(__getitems__=lambda indices: [rows[index] for index in indices])
    for one in (own, Subset(own, range(4))):
        assert isinstance(next(iter(batch_loader(one, Batches(4, 2, None)))), list)  # as its batch
    with pytest.raises(InputError, match="several processes can share only a batch that is a tuple with"):
        list(batch_loader(rows, Batches(1, 2, process(1, 2))))
