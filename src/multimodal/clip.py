"""A network that embeds images and texts in one space."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.text.text_encoder import TextEncoder
from src.vision.cnn import CNN


class CLIP(nn.Module):
    """A `CNN` and a `TextEncoder` with outputs in one embedding space (Radford et al. 2021).

    Args:
        embedding_dim: dimensions of the embedding space.
        in_channels: image channels.
        image_size: height and width of the image in pixels, at least 4.
        width: see `CNN`.
        hidden: see `CNN`.
        vocab_size: number of tokens.
        d_model: see `TextEncoder`.
        num_heads: see `TextEncoder`.
        num_layers: see `TextEncoder`.
        dropout: dropout probability of both networks, in [0, 1).
        temperature: initial value of the learned temperature that divides the similarities, above 0.

    Shapes:
        images (B, C, S, S) float, tokens (B, T) int64 and mask (B, T) bool, true for tokens -> image features and text
        features, both (B, embedding_dim) float with norm 1.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        in_channels: int = 1,
        image_size: int = 28,
        width: int = 32,
        hidden: int = 128,
        vocab_size: int = 256,
        d_model: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
        dropout: float = 0.0,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature {temperature} is out of range: give more than 0")
        for name, value in list(locals().items()):
            if name not in ("self", "__class__"):
                setattr(self, name, value)
        self.image_net = CNN(in_channels, image_size, embedding_dim, width, hidden, dropout)
        self.text_net = TextEncoder(vocab_size, embedding_dim, d_model, num_heads, num_layers, dropout)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def scale(self) -> Tensor:
        """The factor of the similarities, 1 / temperature, at most 100."""
        return self.log_scale.clamp(max=math.log(100)).exp()

    def image_features(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, embedding_dim), with norm 1."""
        return F.normalize(self.image_net(images).float(), dim=1)

    def text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (B, T) and mask (B, T) -> (B, embedding_dim), with norm 1."""
        return F.normalize(self.text_net(tokens, mask).float(), dim=1)

    def forward(self, images: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.image_features(images), self.text_features(tokens, mask)
