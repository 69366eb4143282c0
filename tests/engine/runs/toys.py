"""A network that FSDP2 splits by its blocks, data that is not there, and data at a path."""

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


class PlacedData(ToyData):
    """Data of a path, which is not read."""

    def __init__(self, path: str, batch_size: int = 32) -> None:
        super().__init__(batch_size)
        self.path = path
