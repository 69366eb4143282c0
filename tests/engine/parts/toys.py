"""A network that FSDP2 splits by its blocks, and a disk that is full at a shard."""

import errno
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from src.engine.runs import fsdp2
from tests.toy import CLASSES, SIDE


class BlockNet(nn.Module):
    """A linear layer, two blocks and a linear layer.

    Shapes:
        (B, 1, 8, 8) float -> (B, num_classes) float.
    """

    def __init__(self, num_classes: int = CLASSES, width: int = 16) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.width = width
        self.stem = nn.Linear(SIDE * SIDE, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(2)
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))  # (B, width)
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.head(x)  # (B, num_classes)
        return logits


class Scores(nn.Module):
    """A convolution and two linear layers that share their weights.

    Shapes:
        (B, 1, 8, 8) float -> (B, 3) float, by `scores`; there is no `forward`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4 * SIDE * SIDE, CLASSES)
        self.other = nn.Linear(4 * SIDE * SIDE, CLASSES)
        self.other.weight = self.head.weight

    def scores(self, x: Tensor) -> Tensor:
        features = self.conv(x).relu().flatten(1)
        found: Tensor = self.head(features) + self.other(features)
        return found


class PartsModule(LightningModule):
    """Calls a method of its network, never `forward`.

    Args:
        has_number: give it a parameter without a dimension.
    """

    def __init__(self, has_number: bool = False) -> None:
        super().__init__()
        self.net = Scores()
        if has_number:
            self.scale = nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        loss = nn.functional.cross_entropy(self.net.scores(images), targets)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        self.log("val/loss", nn.functional.cross_entropy(self.net.scores(images), targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class LateFullDisk(Callback):
    """From a step on, the disk is full at the last file of each sharded checkpoint.

    Args:
        step: optimizer steps before.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and trainer.global_rank == 0:
            fsdp2.write_checksums = _full_disk  # type: ignore[assignment]


def _full_disk(folder: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
