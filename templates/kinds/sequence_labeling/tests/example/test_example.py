"""The data and the network of this project; the default recipe learns."""

from collections.abc import Callable

import pytest
import torch

from src.example.data import ExampleDataModule, classes
from src.example.network import ExampleNet
from tests.conftest import Run

Train = Callable[..., Run]


@pytest.fixture
def data() -> ExampleDataModule:
    data = ExampleDataModule(batch_size=10, size=60)
    data.setup("fit")
    return data


def test_the_default_recipe_learns(train: Train) -> None:
    assert train().metrics["test/acc"] > 0.95


def test_letters_are_single_or_in_runs() -> None:
    assert classes("abbc") == [0, 1, 2, 0]
    assert classes("aaab") == [1, 2, 2, 0]


def test_a_batch_has_the_documented_shapes(data: ExampleDataModule) -> None:
    tokens, mask, targets = next(iter(data.train_dataloader()))
    assert tokens.shape == mask.shape == targets.shape
    assert len(tokens) == 10
    assert torch.equal(targets == -100, ~mask)
    assert ExampleNet(**data.network_arguments())(tokens, mask).shape == (*tokens.shape, len(data.labels))


def test_an_epoch_has_every_text_once_and_the_parts_share_none(data: ExampleDataModule) -> None:
    seen = [
        [tuple(row[keep].tolist()) for tokens, mask, _ in loader for row, keep in zip(tokens, mask, strict=True)]
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    ]
    assert [len(part) for part in seen] == [60, 12, 12]
    assert len({text for part in seen for text in part}) == 84


def test_a_text_of_a_file_is_prepared_like_the_texts_of_training(data: ExampleDataModule) -> None:
    tokens, mask, _ = next(iter(data.test_dataloader()))
    prepared = data.prepare(data.test_set.texts[:10])
    assert torch.equal(prepared[0], tokens)
    assert torch.equal(prepared[1], mask)


def test_padding_changes_nothing(data: ExampleDataModule) -> None:
    net = ExampleNet(**data.network_arguments()).eval()
    with torch.no_grad():
        together = net(*data.prepare(["ab", "aabbccddaabb"]))
        alone = net(*data.prepare(["ab"]))
    assert torch.allclose(together[:1, :2], alone, atol=1e-6)
