"""The data and the network of this project; the default recipe learns."""

from collections.abc import Callable

import pytest
import torch

from src.engine.data.pixels import normalise, pixel_statistics
from src.example.data import SIDE, ExampleDataModule
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


def test_a_batch_has_the_documented_shapes(data: ExampleDataModule) -> None:
    images, targets = next(iter(data.train_dataloader()))
    assert images.shape == (10, 1, SIDE, SIDE)
    assert images.dtype == torch.float32
    assert set(targets.tolist()) <= {*range(data.num_classes)}
    assert ExampleNet(**data.network_arguments())(images).shape == (10, len(data.labels))


def test_an_epoch_has_every_image_once_and_the_parts_share_none(data: ExampleDataModule) -> None:
    data.train_set.augments = False  # an augmented copy would count as another image
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    seen = [[image.numpy().tobytes() for images, _ in loader for image in images] for loader in loaders]
    assert [len(part) for part in seen] == [60, 12, 12]
    assert len({image for part in seen for image in part}) == 84


def test_an_image_file_is_prepared_like_the_images_of_training(data: ExampleDataModule) -> None:
    images, _ = next(iter(data.test_dataloader()))
    assert torch.equal(normalise(data.prepare(data.test_set.images[:10]), *pixel_statistics(data)), images)
