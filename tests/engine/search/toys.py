"""A toy network that takes its time, so that a signal finds its run in the middle; toy data with folds."""

import time
from pathlib import Path

from torch import Tensor

from src.engine.data.folds import check_fold
from src.engine.data.split import with_fold
from tests.toy import ToyData, ToyImages, ToyNet


class PacedNet(ToyNet):
    """`ToyNet`, which waits in each training step while the file `brake` is there."""

    def __init__(self, brake: str, num_classes: int = 3, width: int = 8) -> None:
        super().__init__(num_classes=num_classes, width=width)
        self.brake = brake

    def forward(self, x: Tensor) -> Tensor:
        if self.training and Path(self.brake).exists():
            time.sleep(0.5)
        return super().forward(x)


class FoldedData(ToyData):
    """`ToyData` with folds; some labels are wrong, more of them in later folds."""

    def __init__(self, batch_size: int = 32, size: int = 60, fold: int | None = None, folds: int = 5) -> None:
        super().__init__(batch_size, size)
        check_fold(fold, folds)
        self.fold = (fold, folds)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        pool = ToyImages(self.size, 0)
        parts = [list(range(self.size * 4 // 5)), list(range(self.size * 4 // 5, self.size))]
        folded = with_fold(parts, pool.targets.tolist(), *self.fold)
        for images, indices in zip((self.train_set, self.val_set), folded[:2], strict=True):
            images.pixels, images.targets = pool.pixels[indices], pool.targets[indices]
        self.val_set.targets[: self.fold[0]] += 1
        self.val_set.targets %= 3
