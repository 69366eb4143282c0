"""Samples of each batch and process."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from src.engine.cli.cli import StarterCLI
from src.engine.data import loading
from src.engine.data.loading import (
    IGNORED,
    Batched,
    Batches,
    announce,
    batch_loader,
    check_num_workers,
    file_workers,
    in_large_batches,
    shuffled,
)
from src.engine.system.errors import InputError


class Numbers:
    """Samples whose target is their index."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(indices), 4), torch.tensor(indices)


def process(rank: int, world: int) -> Any:
    return SimpleNamespace(world_size=world, global_rank=rank)


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


@pytest.mark.parametrize(("large", "calls"), [(2**24, 2), (8 * 24, 126), (3 * 8 * 24, 43)])
def test_small_batches_are_read_together_in_the_same_order(
    large: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LARGE", large)  # a sample has 24 bytes
    loader = batch_loader(Numbers(1001), Batches(1001, 8, None, shuffled(1001)))
    expected = torch.cat([targets for _, targets in loader])
    found = [targets for _, targets in in_large_batches(loader, None)]
    assert len(found) == calls
    assert torch.equal(torch.cat(found), expected)
    assert torch.equal(torch.cat([targets for _, targets in in_large_batches(loader, 10)]), expected[:80])


def test_the_padding_of_a_process_is_not_read_and_other_loaders_are_as_they_are() -> None:
    data = Numbers(1001)
    shares = [batch_loader(data, Batches(1001, 500, process(rank, 2))) for rank in range(2)]
    read = [[len(targets) for _, targets in in_large_batches(share, None)] for share in shares]
    assert read == [[250, 251], [250, 250]]
    plain = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(20)), 4)
    assert [len(one) for (one,) in in_large_batches(plain, 3)] == [4, 4, 4]


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


def test_auto_leaves_a_core_to_a_network_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(device: str, cores: int, processes: int = 1, nodes: int = 1, given: Any = "auto") -> int:
        monkeypatch.setattr(loading, "usable_cores", lambda: cores)
        strategy = SimpleNamespace(root_device=torch.device(device))
        return file_workers(given, SimpleNamespace(strategy=strategy, world_size=processes, num_nodes=nodes))

    assert [chosen("cpu", 8), file_workers("auto", None)] == [0, 0]
    assert [chosen("cuda", cores) for cores in (1, 2, 8, 128)] == [1, 1, 7, 16]
    assert [chosen("cuda", 32, 4), chosen("cuda", 32, 8, nodes=2), chosen("cuda", 8, 16)] == [7, 7, 1]
    assert chosen("cuda", 8, given=3) == 3
    with pytest.raises(InputError, match="num_workers -1 is out of range: give at least 0, or auto"):
        check_num_workers(-1)
