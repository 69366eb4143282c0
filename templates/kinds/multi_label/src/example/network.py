"""A small convolutional network: replace it with your own."""

from torch import Tensor, nn


class ExampleNet(nn.Module):
    """Two convolutions and a linear layer.

    Args:
        num_classes: number of labels.
        width: channels of the first convolution; the second has twice as many.

    Shapes:
        (B, 1, H, W) float -> (B, num_classes) float.
    """

    def __init__(self, num_classes: int = 3, width: int = 16) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.width = width
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.head = nn.Linear(32 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)  # (B, 32 * width)
        return self.head(x)  # (B, num_classes)
