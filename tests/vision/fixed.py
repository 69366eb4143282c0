"""A detector that finds the boxes that it is given."""

import torch
from torch import Tensor, nn


class Fixed(nn.Module):
    """Finds the boxes that it is given."""

    num_classes, image_size = 3, 32

    def __init__(self, boxes: Tensor) -> None:
        super().__init__()
        self.boxes = boxes
        self.weight = nn.Parameter(torch.zeros(()))

    def losses(self, images: Tensor, targets: list[tuple[Tensor, Tensor]]) -> Tensor:
        return self.weight + sum(len(classes) for _, classes in targets)

    def forward(self, x: Tensor) -> Tensor:
        return self.boxes[: len(x)]
