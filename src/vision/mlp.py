"""A multilayer perceptron: the smallest baseline."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.vision.sizes import check_sizes


class MLP(nn.Module):
    """A perceptron with one hidden layer (Rumelhart et al. 1986) on flattened input.

    Args:
        in_features: values per sample, 784 for a 28 x 28 greyscale image.
        num_classes: number of logits.
        hidden: width of the hidden layer.

    Shapes:
        (B, ...) float with in_features values per sample -> (B, num_classes) float.

    Raises:
        ValueError: an argument is below 1.
    """

    def __init__(self, in_features: int = 784, num_classes: int = 10, hidden: int = 256) -> None:
        super().__init__()
        check_sizes("MLP", in_features=in_features, num_classes=num_classes, hidden=hidden)
        self.in_features = in_features
        self.num_classes = num_classes
        self.hidden = hidden
        self.fc1 = nn.Linear(in_features, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(torch.flatten(x, 1)))  # (B, hidden)
        return self.fc2(x)  # (B, num_classes)
