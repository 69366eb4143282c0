"""The data and the network of this project; the default recipe learns."""

from collections.abc import Callable

import pytest
import torch

from src.engine.deploy.prepare import prepare_targets
from src.example.data import ExampleDataModule
from src.example.network import ExampleNet
from tests.conftest import Run

Train = Callable[..., Run]


@pytest.fixture
def data() -> ExampleDataModule:
    data = ExampleDataModule(batch_size=10, size=60)
    data.setup("fit")
    return data


def test_the_default_recipe_learns(train: Train) -> None:
    assert train().metrics["test/rmse"] < 1.5  # of noise of 1


def test_a_batch_has_the_documented_shapes(data: ExampleDataModule) -> None:
    features, targets = next(iter(data.train_dataloader()))
    assert features.shape == (10, len(data.columns))
    assert targets.shape == (10, len(data.labels)) == ExampleNet(**data.network_arguments())(features).shape


def test_an_epoch_has_every_row_once_and_the_parts_share_none(data: ExampleDataModule) -> None:
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    seen = [[tuple(row.tolist()) for features, _ in loader for row in features] for loader in loaders]
    assert [len(part) for part in seen] == [60, 12, 12]
    assert len({row for part in seen for row in part}) == 84


def test_a_row_of_a_file_is_prepared_like_the_rows_of_training(data: ExampleDataModule) -> None:
    features, _ = next(iter(data.test_dataloader()))
    assert torch.equal(data.prepare(data.test_set.rows[:10]), features)


def test_a_row_without_a_true_value_counts_as_unknown(data: ExampleDataModule) -> None:
    assert prepare_targets(data, ["1.5", ""]).isnan().tolist() == [[False], [True]]
