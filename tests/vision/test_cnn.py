import pytest
import torch

from src.vision.cnn import CNN


def test_parameters_and_logits_have_the_documented_shapes() -> None:
    shapes = {name: tuple(value.shape) for name, value in CNN().named_parameters()}
    assert shapes["conv1.weight"] == (32, 1, 3, 3)
    assert shapes["conv2.weight"] == (64, 32, 3, 3)
    assert shapes["fc1.weight"] == (128, 64 * 7 * 7)
    assert shapes["fc2.weight"] == (10, 128)
    assert CNN()(torch.zeros(5, 1, 28, 28)).shape == (5, 10)


@pytest.mark.parametrize("size", [4, 7, 30, 64])
def test_any_image_size_channels_and_classes_work(size: int) -> None:
    net = CNN(in_channels=3, image_size=size, num_classes=4, width=5, hidden=6, dropout=0.5)
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 3}, "image_size 3 is too small"),
        ({"width": 0}, "width 0 is too small"),
        ({"dropout": 1.0}, r"dropout 1.0 is out of range"),
    ],
)
def test_an_argument_that_does_not_fit_is_an_error_at_construction(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CNN(**arguments)


def test_the_error_for_a_wrong_image_size_names_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 32, 32\) do not fit CNN: it takes \(B, 1, 28, 28\)"):
        CNN()(torch.zeros(2, 1, 32, 32))


def test_dropout_is_active_in_training_only() -> None:
    net = CNN(dropout=0.5)
    images = torch.rand(4, 1, 28, 28)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))
