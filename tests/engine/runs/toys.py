"""A network that FSDP2 splits by its blocks, and data that is not there."""

from typing import Any

from lightning.pytorch import Callback
from torch import Tensor, nn

from src.engine.system.errors import InputError
from tests.toy import CLASSES, SIDE, ToyData


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


class UnreachableData(ToyData):
    """Data whose files are not there."""

    def prepare_data(self) -> None:
        raise InputError("the data folder is not there")


class Reading:
    """A callable instance."""

    def __call__(self, value: float) -> float:
        return value


class WithObjects(Callback):
    """Has arguments that YAML does not know.

    Args:
        read: an instance as default.
        given: anything.
        tag: a text, which jsonargparse reads as a number where it can.
    """

    def __init__(self, read: Any = Reading(), given: Any = None, tag: str | None = None) -> None:  # noqa: B008
        self.read = read
        self.given = given
        self.tag = tag
