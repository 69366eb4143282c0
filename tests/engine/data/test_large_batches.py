"""Small batches are read together."""

import pytest
import torch

from src.engine.data import large_batches
from src.engine.data.large_batches import in_large_batches
from src.engine.data.loading import Batches, batch_loader, shuffled
from tests.engine.data.test_loading import Numbers, process


@pytest.mark.parametrize(("large", "calls"), [(2**24, 2), (8 * 24, 126), (3 * 8 * 24, 43)])
def test_small_batches_are_read_together_in_the_same_order(
    large: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_batches, "LARGE", large)  # a sample has 24 bytes
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
