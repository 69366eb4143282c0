"""Toy images as sequences of tokens."""

from typing import Any

import torch

from src.tasks.classifier import Classifier
from tests.toy import Batch, ToyData, ToyMLP


class TokenData(ToyData):
    """Each image is 64 tokens, 1 for a bright pixel and 0 for a dark one."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        images, targets = batch
        return (images.flatten(1) > 0).long(), targets


class TokenMLP(ToyMLP):
    """A `ToyMLP` of tokens.

    Shapes:
        (B, in_features) int64 -> (B, num_classes) float.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float())


class BackboneClassifier(Classifier):
    """A classifier whose convolution is its backbone."""

    @property
    def backbone(self) -> torch.nn.Module:
        return self.net.conv


TOKENS = ("--data=tests.engine.training.toys.TokenData", "--model.net=tests.engine.training.toys.TokenMLP")
