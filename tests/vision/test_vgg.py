import pytest
import torch

from src.vision.vgg import VGG


def test_convolutions_and_logits_have_the_documented_shapes() -> None:
    net = VGG(width=4, stages=2, depth=3)
    shapes = [tuple(value.shape) for value in net.parameters() if value.ndim == 4]
    assert shapes == [(4, 1, 3, 3), (4, 4, 3, 3), (4, 4, 3, 3), (8, 4, 3, 3), (8, 8, 3, 3), (8, 8, 3, 3)]
    assert net(torch.zeros(5, 1, 28, 28)).shape == (5, 10)


def test_any_image_size_channels_and_classes_work() -> None:
    net = VGG(in_channels=3, num_classes=4, width=2)
    assert net(torch.zeros(2, 3, 64, 37)).shape == (2, 4)
    assert net(torch.zeros(2, 3, 4, 4)).shape == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth 0 is too small"),
        ({"width": 0}, "width 0 is too small"),
        ({"stages": 0}, "stages 0 is too small"),
        ({"dropout": 1.0}, "dropout 1.0 is out of range"),
        ({"image_size": 3}, "image_size 3 is too small for VGG: 3 stages need 4 pixels"),
    ],
)
def test_an_argument_that_does_not_fit_is_an_error_at_construction(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VGG(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 3, 28)])
def test_the_error_for_a_wrong_image_shape_names_the_right_one(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"do not fit this VGG: it takes \(B, 1, H, W\), H and W at least 4"):
        VGG()(torch.zeros(shape))


def test_it_can_overfit_one_batch() -> None:
    torch.manual_seed(0)
    net = VGG(width=8, stages=2)
    images, targets = torch.randn(20, 1, 28, 28), torch.randint(10, (20,))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(net(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
