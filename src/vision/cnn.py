"""A small convolutional network for small images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.vision.sizes import check_images, check_sizes


class CNN(nn.Module):
    """Two convolutions with max pooling, then two linear layers (after LeNet-5, LeCun et al. 1998).

    Args:
        in_channels: image channels, 1 for greyscale.
        image_size: height and width of the image in pixels, at least 4.
        num_classes: number of logits.
        width: channels of the first convolution; the second has twice as many.
        hidden: outputs of the first linear layer.
        dropout: dropout probability after the first linear layer, in [0, 1).

    Shapes:
        (B, in_channels, image_size, image_size) float -> (B, num_classes) float.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        width: int = 32,
        hidden: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if image_size < 4:
            raise ValueError(f"image_size {image_size} is too small for CNN: two 2x2 poolings need at least 4 pixels")
        check_sizes("CNN", dropout, in_channels=in_channels, num_classes=num_classes, width=width, hidden=hidden)
        self.in_channels = in_channels
        self.image_size = image_size
        self.num_classes = num_classes
        self.width = width
        self.hidden = hidden
        self.dropout = dropout
        # Padding by 1 keeps the size: a 28-pixel image is 7x7 after the second pooling, without padding 5x5.
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(2 * width * (image_size // 4) ** 2, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        check_images("CNN", x, self.in_channels, self.image_size, self.image_size)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # (B, width, S/2, S/2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (B, 2*width, S/4, S/4)
        x = F.relu(self.fc1(torch.flatten(x, 1)))  # (B, hidden)
        x = F.dropout(x, self.dropout, self.training)
        return self.fc2(x)  # (B, num_classes)
