"""A toy network that takes its time, so that a signal finds its run in the middle."""

import time
from pathlib import Path

from torch import Tensor

from tests.toy import ToyNet


class PacedNet(ToyNet):
    """`ToyNet`, which waits in each training step while the file `brake` is there."""

    def __init__(self, brake: str, num_classes: int = 3, width: int = 8) -> None:
        super().__init__(num_classes=num_classes, width=width)
        self.brake = brake

    def forward(self, x: Tensor) -> Tensor:
        if self.training and Path(self.brake).exists():
            time.sleep(0.5)
        return super().forward(x)
