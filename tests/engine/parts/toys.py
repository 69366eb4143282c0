"""A network that FSDP2 splits by its blocks, and a disk that is full at a shard."""

import errno
import os
from pathlib import Path
from typing import Any

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
