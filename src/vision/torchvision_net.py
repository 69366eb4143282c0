"""torchvision's classification networks, with a new head for your classes."""

import re
import socket
from difflib import SequenceMatcher
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from src.vision.sizes import check_sizes

GOOGLE = ("googlenet", "inception_v3")  # with weights, they scale their inputs, and GoogLeNet has no auxiliary branches
HALVES = ("efficientnet_v2_l",)  # its weights expect mean and deviation 0.5, all others ImageNet's
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
OLD_DENSENET = r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)"
KEPT = ("transform_input", "aux_logits", "image_size")  # options that weights bring, or that their shapes depend on
TIMEOUT = 10.0  # seconds without data after which a download fails


class TorchvisionNet(nn.Module):
    """A classification network of torchvision, such as resnet18, with its last layer replaced.

    Args:
        name: torchvision's name of the network.
        weights: `DEFAULT` (torchvision's best) or a name such as `IMAGENET1K_V1`, both downloaded; or a weights file.
            Default: none, train from scratch.
        num_classes: number of logits.
        freeze_body: train only the last layer; the rest stays in eval mode (no dropout, fixed batch statistics).
        image_size: height and width of the images in pixels; if given, checked against the network at construction.
        options: further arguments of torchvision's function, such as `image_size` of a ViT. Default: those that the
            weights were trained with.

    Shapes:
        (B, 3, H, W) float, normalised as ImageNet's, or (B, 1, H, W), used three times -> (B, num_classes) float.

    Raises:
        ValueError: torchvision has no such network, the weights cannot be loaded or do not fit, or `image_size` does
            not fit.
    """

    def __init__(
        self,
        name: str = "resnet18",
        weights: str | None = None,
        num_classes: int = 10,
        freeze_body: bool = False,
        image_size: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_name(name, models.list_models(module=models))
        check_sizes(name, num_classes=num_classes)
        self.name = name
        self.weights = weights
        self.num_classes = num_classes
        self.freeze_body = freeze_body
        self.image_size = image_size
        file = weights_file(weights)
        options = dict(options or {})
        if file is not None and name in GOOGLE:
            options.setdefault("transform_input", True)  # as torchvision does for weights by name
        self.scale: Tensor
        self.shift: Tensor
        self.net: nn.Module = build_net(name, weights if file is None else None, **options)
        if file is not None:
            load_weights(self.net, read_weights(file), weights, name)
        if name in GOOGLE and "aux_logits" not in options:
            for one in ("AuxLogits", "aux1", "aux2"):  # their logits are not used
                if hasattr(self.net, one):
                    setattr(self.net, one, None)
            self.net.aux_logits = False  # type: ignore[assignment]
        kept = KEPT if isinstance(self.net, models.GoogLeNet | models.Inception3 | models.VisionTransformer) else ()
        self.options = {**options, **{one: getattr(self.net, one) for one in kept if hasattr(self.net, one)}}
        self.rebuild = {"weights": None, "options": self.options}  # a checkpoint holds the weights
        if name in HALVES:
            for one, values in (("scale", STD / 0.5), ("shift", (MEAN - 0.5) / 0.5)):
                self.register_buffer(one, values[:, None, None], persistent=False)
        if freeze_body:
            self.net.requires_grad_(False)
        self._head_name = _replace_head(self.net, num_classes)
        if image_size is not None:
            _check_size(self, image_size)
        self.train()

    @property
    def head(self) -> nn.Module:
        """The new last layer."""
        return self.net.get_submodule(self._head_name)

    def train(self, mode: bool = True) -> "TorchvisionNet":
        super().train(mode)
        if self.freeze_body:
            self.net.eval()
            self.head.train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        logits = self.net(x * self.scale + self.shift if self.name in HALVES else x)
        # In training, Inception and GoogLeNet also return auxiliary logits.
        return logits if isinstance(logits, Tensor) else logits.logits  # (B, num_classes)


def _check_size(net: TorchvisionNet, size: int) -> None:
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason, fits = " ".join(str(error).split())[:200], getattr(net.net, "image_size", 224)  # a ViT takes one only
        raise ValueError(
            f"{net.name} does not take images of {size} x {size} pixels ({reason}): give --data.image_size {fits}"
        ) from error


def check_name(name: str, known: list[str]) -> None:
    """Raise ValueError if torchvision's networks do not include this one."""
    if name not in known:
        near = sorted(known, key=lambda other: -SequenceMatcher(None, name.lower(), other).ratio())
        raise ValueError(f"torchvision has no network {name}: give one of {', '.join(near)}")


def weights_file(weights: str | None) -> Path | None:
    """The file that `weights` names, None for a name of torchvision's weights; ValueError if there is no such file."""
    file = Path(weights or "").expanduser()
    is_name = re.fullmatch(r"\w+_Weights\.[A-Z0-9_]+", weights or "")  # torchvision's, in full
    if file.suffix and not file.is_file() and not is_name:
        raise ValueError(f"weights {weights}: no such file")
    return file if file.is_file() else None


def build_net(name: str, weights: str | None, **options: Any) -> nn.Module:
    """A network of torchvision; ValueError if it has no such weights or options, or they cannot be downloaded."""
    if weights is None and name in GOOGLE:
        options["init_weights"] = True
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets no timeout
    try:
        net: nn.Module = models.get_model(name, weights=weights, **options)
    except (TypeError, ValueError) as error:
        what = f"the weights {weights} of {name}" if weights else name
        raise ValueError(f"options {options} do not fit {what}: {error}") from error
    except KeyError as error:
        names = [weight.name for weight in models.get_model_weights(name)]
        raise ValueError(
            f"weights {weights}: {name} has no weights of that name; give {', '.join(names)}, DEFAULT, or a file"
        ) from error
    except (RuntimeError, OSError, HTTPException, EOFError) as error:
        raise ValueError(
            f"the weights {weights} of {name} could not be downloaded ({error}): give a file with --model.net.weights"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return net


def read_weights(file: Path) -> Any:
    """The content of a weights file; ValueError if torch.save has not written it."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        dict(state)  # an error for another content
        if old := [key for key in state if re.search(OLD_DENSENET, key)]:  # torchvision's own files
            state |= {re.sub(OLD_DENSENET, r"\1\2", key): state.pop(key) for key in old}
        return state
    except Exception as error:  # torch raises many kinds of errors for other files
        raise ValueError(f"weights {file} is not a weights file written by torch.save") from error


def load_weights(net: nn.Module, state: Any, weights: str | None, name: str, replaced: tuple[str, ...] = ()) -> None:
    """Load weights, except those of another shape in layers that are `replaced`; ValueError if they do not fit."""
    own = net.state_dict()
    left_out = {key for key in own.keys() & {*state} if any(layer in key for layer in replaced)}
    left_out = {key for key in left_out if getattr(state[key], "shape", None) != own[key].shape}
    try:
        for key in left_out:
            del state[key]  # not in a copy, which would lose the version of each layer
        lost = {key for keys in net.load_state_dict(state, strict=False) for key in keys} - left_out
        if lost := {key for key in lost if not key.endswith("num_batches_tracked")}:  # in old files
            raise RuntimeError(f"{min(lost)} is missing, not expected or of another shape")
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the weights in {weights} do not fit {name}: {reason}") from error


def _replace_head(net: nn.Module, num_classes: int) -> str:
    """Replace the last layer and return its name."""
    # In GoogLeNet and Inception the auxiliary branches come after the last layer, `fc`.
    main: list[tuple[str, Any]] = [one for one in net.named_modules() if not one[0].startswith(("aux", "AuxLogits"))]
    name, old = [one for one in main if isinstance(one[1], nn.Linear | nn.Conv2d)][-1]
    is_convolution = isinstance(old, nn.Conv2d)  # SqueezeNet
    head = nn.Conv2d(old.in_channels, num_classes, 1) if is_convolution else nn.Linear(old.in_features, num_classes)
    net.set_submodule(name, head)
    return name
