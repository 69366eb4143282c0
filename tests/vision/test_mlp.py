import pytest
import torch

from src.vision.mlp import MLP


def test_images_are_flattened() -> None:
    assert MLP()(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert MLP(in_features=6, num_classes=2, hidden=4)(torch.zeros(3, 6)).shape == (3, 2)


def test_a_size_below_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="hidden 0 is too small"):
        MLP(hidden=0)
