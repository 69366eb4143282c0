"""A network that embeds images, texts and sounds in one space."""

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.text.text_encoder import TextEncoder
from src.vision.cnn import CNN

Modality = Literal["image", "sound", "text"]
INPUTS = {"image": 1, "sound": 1, "text": 2}  # tensors of each modality, in order: texts have tokens and mask
IN_CHANNELS, VOCAB_SIZE = 1, 256  # defaults
MAX_SCALE = 100  # of the similarities


class CLIP(nn.Module):
    """Encoders of images, texts and sounds with outputs in one embedding space (Radford et al. 2021).

    Sounds are spectrograms, for an image network. By default images and sounds have a `CNN`, texts a `TextEncoder`.

    Args:
        embedding_dim: dimensions of the embedding space.
        in_channels: image channels.
        image_size: height and width of the image in pixels, at least 4.
        sound_size: height and width of the spectrogram, at least 4.
        width: see `CNN`.
        hidden: see `CNN`.
        vocab_size: number of tokens.
        d_model: see `TextEncoder`.
        num_heads: see `TextEncoder`.
        num_layers: see `TextEncoder`.
        dropout: dropout probability of these networks, in [0, 1).
        temperature: initial value of the learned temperature that divides the similarities, at least 0.01.
        modalities: two or three of `image`, `sound` and `text`.
        image: another network for images, (B, C, S, S) -> (B, embedding_dim).
        text: another network for texts, tokens (B, T) and mask (B, T) -> (B, embedding_dim).
        sound: another network for sounds, (B, 1, S, S) -> (B, embedding_dim).

    Shapes:
        The inputs of its modalities, in this order: images (B, C, S, S) float; spectrograms (B, 1, S, S) float; tokens
        (B, T) int64 and mask (B, T) bool, true for tokens -> features of each, (B, embedding_dim) float with norm 1.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        in_channels: int = IN_CHANNELS,
        image_size: int = 28,
        sound_size: int = 40,
        width: int = 32,
        hidden: int = 128,
        vocab_size: int = VOCAB_SIZE,
        d_model: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
        dropout: float = 0.0,
        temperature: float = 0.07,
        modalities: Sequence[Modality] = ("image", "text"),
        image: nn.Module | None = None,
        text: nn.Module | None = None,
        sound: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not temperature >= 1 / MAX_SCALE:
            raise ValueError(f"temperature {temperature} is out of range: give at least {1 / MAX_SCALE}")
        given = {"image": image, "text": text, "sound": sound}
        if not 2 <= len(set(modalities)) == len(modalities):
            raise ValueError(f"modalities {', '.join(modalities)}: give two or three of {', '.join(INPUTS)}")
        if unused := [name for name, net in given.items() if net is not None and name not in modalities]:
            raise ValueError(f"{unused[0]} is not a modality of this network: leave it out, or add it to modalities")
        for name, value in list(locals().items()):
            if name not in ("self", "__class__", "given", *(one for one, net in given.items() if net is not None)):
                setattr(self, name, value)
        self.modalities = [name for name in INPUTS if name in modalities]
        defaults: dict[str, Callable[[], nn.Module]] = {
            "image": lambda: CNN(in_channels, image_size, embedding_dim, width, hidden, dropout),
            "text": lambda: TextEncoder(vocab_size, embedding_dim, d_model, num_heads, num_layers, dropout),
            "sound": lambda: CNN(1, sound_size, embedding_dim, width, hidden, dropout),
        }
        sizes = {"image": ("in_channels", in_channels, IN_CHANNELS), "sound": ("in_channels", 1, None)}
        sizes["text"] = ("vocab_size", vocab_size, VOCAB_SIZE)
        for name in self.modalities:
            net = given[name] or defaults[name]()
            what = f"{name} network {type(net).__name__}"
            if (outputs := getattr(net, "num_classes", embedding_dim)) != embedding_dim:
                raise ValueError(f"{what} has {outputs} outputs, embedding_dim is {embedding_dim}: set its num_classes")
            option, need, default = sizes[name]  # a default may not be what the data has
            have = getattr(net, option, need)
            if isinstance(have, int) and need != default and (have < need if name == "text" else have != need):
                raise ValueError(f"{what} has {option} {have}, CLIP {need}: give it {option} {need}")
            setattr(self, f"{name}_net", net)
            if given[name] is not None:
                self.__dict__[name] = net  # as other arguments, but registered once
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def scale(self) -> Tensor:
        """The factor of the similarities, 1 / temperature, at most 100."""
        if self.training:  # as in the paper: clipped, so that it can become smaller again
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(MAX_SCALE))
        return self.log_scale.clamp(max=math.log(MAX_SCALE) + 1e-3).exp()

    def features(self, modality: str, *inputs: Tensor) -> Tensor:
        """The inputs of one modality -> (B, embedding_dim), with norm 1."""
        return F.normalize(getattr(self, f"{modality}_net")(*inputs).float(), dim=1)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        left = iter(inputs)
        return tuple(self.features(name, *islice(left, INPUTS[name])) for name in self.modalities)
