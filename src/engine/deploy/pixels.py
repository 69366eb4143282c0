"""A model on raw pixels."""

from typing import Any

from torch import Tensor, nn

from src.engine.data.pixels import normalise


class Pixels(nn.Module):
    """Normalises pixels, then calls a model; both can be exported as one.

    Args:
        model: (B, C, H, W) float pixels, normalised -> outputs.
        mean: (C, 1, 1), mean of each channel, on a scale of 0 to 1.
        std: (C, 1, 1), standard deviation of each channel, on a scale of 0 to 1.

    Shapes:
        (B, C, H, W), 0 to 255, float or uint8 -> outputs of the model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W), 0 to 255 -> float pixels with mean 0 and standard deviation 1."""
        return normalise(pixels, self.mean, self.std)

    def forward(self, pixels: Tensor) -> Any:
        return self.model(self.normalise(pixels))
