"""Image recipes and class names on the command line."""

from collections.abc import Callable

import pytest
import torchvision.ops  # also has a class MLP

from src.engine.cli.cli import StarterCLI
from src.vision.cnn import CNN
from src.vision.image_classifier import ImageClassifier
from src.vision.mnist import MNISTDataModule
from src.vision.vgg import VGG

Parse = Callable[..., StarterCLI]


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """None: the default one is meant."""
    return ()


@pytest.mark.slow
def test_without_config_the_default_recipe_is_used(parse: Parse) -> None:
    built = parse()
    assert built.config == parse("--config=configs/default.yaml").config
    assert built.config.name == "default"
    assert isinstance(built.model, ImageClassifier)
    assert isinstance(built.model.net, VGG)
    assert (built.config.trainer.max_epochs, built.config.optimizer.init_args.lr) == (4, 0.008)


def test_model_data_and_network_can_be_given_by_name(parse: Parse) -> None:
    built = parse("--data=MNISTDataModule", "--model=ImageClassifier", "--model.net=CNN", "--model.net.hidden=7")
    assert isinstance(built.model, ImageClassifier)
    assert isinstance(built.datamodule, MNISTDataModule)
    assert isinstance(built.model.net, CNN)
    assert built.model.net.hidden == 7


@pytest.mark.slow
def test_a_class_name_finds_the_projects_class_before_a_librarys(parse: Parse) -> None:
    assert parse("--model.net=MLP").config.model.init_args.net.class_path == "src.vision.mlp.MLP"
    sizes = ("--model.num_classes=10", "--model.net.in_channels=9", "--model.net.hidden_channels=[10]")
    other = parse("--model.net=torchvision.ops.MLP", *sizes)
    assert isinstance(other.model.net, torchvision.ops.MLP)
