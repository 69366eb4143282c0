"""A small perceptron: replace it with your own."""

from torch import Tensor, nn


class ExampleNet(nn.Module):
    """One hidden layer, after all numbers are brought to one scale (Ioffe and Szegedy 2015).

    Args:
        num_features: numbers per sample.
        num_targets: numbers to predict.
        hidden: width of the hidden layer.

    Shapes:
        (B, num_features) float -> (B, num_targets) float.
    """

    def __init__(self, num_features: int = 5, num_targets: int = 1, hidden: int = 64) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_targets = num_targets
        self.hidden = hidden
        self.layers = nn.Sequential(
            nn.BatchNorm1d(num_features), nn.Linear(num_features, hidden), nn.ReLU(), nn.Linear(hidden, num_targets)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # (B, num_targets)
