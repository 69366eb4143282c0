"""A network with pixel normalisation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Pixels(nn.Module):
    """Normalises pixels, then calls a network; both can be exported as one.

    Args:
        net: the network, normalised (B, C, H, W) float pixels -> (B, num_classes) float logits.
        mean: mean of each channel, on a scale of 0 to 1.
        std: standard deviation of each channel, on a scale of 0 to 1.

    Shapes:
        (B, C, H, W), 0 to 255, float or uint8 -> (B, num_classes) float logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W), 0 to 255 -> float pixels with mean 0 and standard deviation 1."""
        return (pixels.float() / 255 - self.mean) / self.std

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.net(self.normalise(pixels))
        return logits
