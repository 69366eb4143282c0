"""A deeper, more accurate convolutional network."""

import torch
from torch import Tensor, nn

from src.vision.sizes import check_sizes


class VGG(nn.Module):
    """Stages of 3x3 convolutions with max pooling between them (Simonyan and Zisserman 2015).

    Batch normalisation (Ioffe and Szegedy 2015) and ReLU follow each convolution; global average pooling (Lin et al.
    2014) and one linear layer follow the last stage.

    Args:
        in_channels: image channels, 1 for greyscale.
        image_size: smallest height and width of an image in pixels, at least 2^(stages - 1); each pooling halves it.
        num_classes: number of logits.
        width: channels of the first stage; each later stage has twice as many as the one before.
        stages: number of stages, with max pooling between them.
        depth: convolutions per stage.
        dropout: dropout probability before the linear layer, in [0, 1).

    Shapes:
        (B, in_channels, H, W) float, H and W at least image_size -> (B, num_classes) float.

    Raises:
        ValueError: an argument is out of range, or an image is too small for the number of stages.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        width: int = 32,
        stages: int = 3,
        depth: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "num_classes": num_classes}
        check_sizes("VGG", dropout, **sizes, width=width, stages=stages, depth=depth)
        self.least = 2 ** (stages - 1)
        if image_size < self.least:
            raise ValueError(f"image_size {image_size} is too small for VGG: {stages} stages need {self.least} pixels")
        self.in_channels = in_channels
        self.image_size = image_size
        self.num_classes = num_classes
        self.width = width
        self.stages = stages
        self.depth = depth
        self.dropout = dropout
        layers: list[nn.Module] = []
        channels = in_channels
        for stage in range(stages):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                out = width * 2**stage
                layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.in_channels or min(x.shape[2:]) < self.least:
            raise ValueError(
                f"images of shape {tuple(x.shape)} do not fit this VGG: it takes (B, {self.in_channels}, H, W), H and W"
                f" at least {self.least}"
            )
        x = self.features(x)  # (B, width * 2^(stages - 1), H / least, W / least)
        return self.head(torch.mean(x, dim=(2, 3)))  # (B, num_classes)
