"""A network with an embedding and an output layer, and a task with parameter groups."""

from typing import Any

import torch
from torch import Tensor, nn

from src.engine.training.optim.groups import Group, decay_groups
from src.tasks.classifier import Classifier


class TokenNet(nn.Module):
    """An embedding, a norm, two hidden layers and an output layer.

    Shapes:
        (B, T) int64 -> (B, T, vocab_size) float.
    """

    def __init__(self, vocab_size: int = 20, width: int = 8, tie_weights: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, vocab_size, bias=False)
        if tie_weights:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)  # (B, T, width)
        logits: Tensor = self.head(x + self.blocks(self.norm(x)))  # (B, T, vocab_size)
        return logits


class GroupedClassifier(Classifier):
    """A classifier whose biases and norms do not decay."""

    def parameter_groups(self) -> list[Group]:
        return decay_groups(self.net)


def token_net(**options: Any) -> TokenNet:
    """A network with the same weights at every call."""
    torch.manual_seed(0)
    return TokenNet(**options)
