"""A small convolutional network: replace it with your own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ExampleNet(nn.Module):
    """Convolutions at full and at half size, joined for a class of each pixel.

    Args:
        num_classes: number of logits per pixel.
        width: channels of the first convolution.

    Shapes:
        (B, 1, H, W) float, H and W even -> (B, num_classes, H, W) float.
    """

    def __init__(self, num_classes: int = 3, width: int = 8) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.width = width
        self.full = nn.Conv2d(1, width, 3, padding=1)
        self.coarse = nn.Sequential(
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 5, padding=2),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(3 * width, num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.full(x))  # (B, width, H, W)
        wide = F.interpolate(self.coarse(x), scale_factor=2.0)  # (B, 2 * width, H, W)
        return self.head(torch.cat([x, wide], dim=1))  # (B, num_classes, H, W)
