"""Object detectors: those of torchvision, with a head for your classes, and a small one for small images."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FeaturePyramidNetwork, box_iou

from src.vision.sizes import check_images, check_multiples, check_sizes
from src.vision.torchvision_net import MEAN, STD, build_net, check_name, load_weights, read_weights, weights_file

MAX_BOXES = 100  # predicted for an image; COCO counts no more
CANDIDATES = 1000  # boxes of an image before non-maximum suppression
ROUNDS = 20  # of non-maximum suppression: the longest chain of boxes each of which suppresses the next one
KINDS = ("ssd300", "ssdlite320", "retinanet", "fcos", "fasterrcnn")  # first words of the names that torchvision has


class Detector(nn.Module):
    """A detector of torchvision that takes and returns tensors of a fixed shape.

    Args:
        net: an SSD, RetinaNet, FCOS or FasterRCNN of torchvision for `num_classes` + 1 classes, the first one unused.
        num_classes: number of classes.
        image_size: S, height and width of the images in pixels, a multiple of 32.

    Shapes:
        (B, 3, S, S) float, normalised as ImageNet's -> (B, 100, 6) float, the most confident boxes first: x1, y1, x2
        and y2 as shares of width and height, score in [0, 1], class number. Rows after the last box are 0.
    """

    def __init__(self, net: Any, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.net = net
        self.num_classes = num_classes
        self.image_size = image_size
        heads = [net.rpn.head, net.roi_heads.box_predictor] if isinstance(net, FasterRCNN) else [net.head]
        for one in (net.backbone, *heads):
            one.register_forward_hook(_as_float)

    def losses(self, images: Tensor, targets: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The sum of the network's losses, one number.

        Args:
            images: (B, 3, S, S) float, normalised as ImageNet's.
            targets: for each image boxes (N, 4), x1, y1, x2 and y2 as shares of width and height, and classes (N,).
        """
        check_images(type(self).__name__, images, 3, self.image_size, self.image_size)
        found = [{"boxes": boxes * self.image_size, "labels": classes + 1} for boxes, classes in targets]
        parts = [self.net, *(getattr(self.net, name) for name in ("rpn", "roi_heads") if hasattr(self.net, name))]
        before = [one.training for one in parts]
        for one in parts:
            one.training = True  # losses in place of boxes; the layers stay as they are
        try:
            losses: dict[str, Tensor] = self.net(list(images), found)
        finally:
            for one, mode in zip(parts, before, strict=True):
                one.training = mode
        return torch.stack([one.float() for one in losses.values()]).sum()

    def forward(self, x: Tensor) -> Tensor:
        check_images(type(self).__name__, x, 3, self.image_size, self.image_size)
        if isinstance(self.net, FasterRCNN):
            return self._two_stages(x)
        transform = self.net.transform
        x = transform.normalize(x)
        if transform.fixed_size is not None:
            x = F.interpolate(x, size=transform.fixed_size[::-1], mode="bilinear", align_corners=False)
        features = list(self.net.backbone(x).values())
        outputs = self.net.head(features)
        # For one image: all have the same.
        shape = (x.shape[2], x.shape[3])
        (anchors,) = self.net.anchor_generator(ImageList(x[:1], [shape]), features)  # (A, 4)
        logits, deltas = outputs["cls_logits"].float(), outputs["bbox_regression"].float()  # (B, A, C + 1), (B, A, 4)
        scores = logits.softmax(dim=2) if isinstance(self.net, SSD) else logits.sigmoid()
        if isinstance(self.net, FCOS):
            scores = (scores * outputs["bbox_ctrness"].float().sigmoid()).sqrt()
            boxes = self.net.box_coder.decode(deltas, anchors)
        else:
            boxes = self.net.box_coder.decode_single(deltas.flatten(0, 1), anchors.repeat(len(x), 1)).view_as(deltas)
        boxes = (boxes / torch.tensor([*shape[::-1], *shape[::-1]], device=x.device)).clamp(0, 1)
        return best_boxes(boxes, scores[:, :, 1:], self.net.score_thresh, self.net.nms_thresh)

    def _two_stages(self, x: Tensor) -> Tensor:
        """The boxes of a FasterRCNN, image by image."""
        was_training = self.training
        found = self.net.eval()(list(x))
        self.net.train(was_training)
        rows = [
            torch.cat([one["boxes"] / self.image_size, one["scores"][:, None], one["labels"][:, None] - 1], dim=1)
            for one in found
        ]
        return torch.stack([F.pad(one[:MAX_BOXES], (0, 0, 0, MAX_BOXES - len(one[:MAX_BOXES]))) for one in rows])


def _as_float(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Outputs of autocast as float32: coordinates of 16 bits are wrong by some pixels, and mix up classes."""
    if isinstance(output, Tensor):
        return output.float() if torch.is_autocast_enabled(output.device.type) else output
    if isinstance(output, dict):
        return OrderedDict((name, _as_float(module, inputs, one)) for name, one in output.items())
    return type(output)(_as_float(module, inputs, one) for one in output)


def best_boxes(boxes: Tensor, scores: Tensor, score_limit: float, overlap_limit: float) -> Tensor:
    """Non-maximum suppression, class by class, of all images at once and in a graph of fixed shape.

    Args:
        boxes: (B, A, 4) float: x1, y1, x2, y2.
        scores: (B, A, C) float.
        score_limit: lower scores do not count.
        overlap_limit: of boxes whose intersection over union is greater, the one with the higher score stays.

    Returns:
        (B, 100, 6): see `Detector`.
    """
    count = scores.shape[2]
    scores, order = scores.flatten(1).topk(min(CANDIDATES, scores.shape[1] * count))  # (B, N), sorted
    if not torch.compiler.is_exporting():  # whose graph has a fixed shape
        most = int((scores > score_limit).sum(dim=1).max())
        scores, order = scores[:, :most], order[:, :most]
    boxes = boxes.gather(1, (order // count).unsqueeze(2).expand(-1, -1, 4))  # (B, N, 4)
    classes = order % count
    some = None if torch.compiler.is_exporting() else 8  # images at once, for less memory
    overlaps = torch.vmap(box_iou, chunk_size=some)(boxes, boxes) > overlap_limit
    same = classes.unsqueeze(2) == classes.unsqueeze(1)
    stronger = (overlaps & same).float().triu(diagonal=1)  # (B, N, N): row suppresses column
    kept = torch.ones_like(scores)
    for _ in range(ROUNDS):  # a box stays if no stronger one that stays suppresses it
        kept = ((kept.unsqueeze(1) @ stronger).squeeze(1) == 0).float()
    scores = scores * kept * (scores > score_limit)
    scores, order = scores.topk(min(MAX_BOXES, scores.shape[1]))  # (B, K)
    rows = torch.cat([boxes, classes.unsqueeze(2).float()], dim=2).gather(1, order.unsqueeze(2).expand(-1, -1, 5))
    rows = torch.cat([rows[:, :, :4], scores.unsqueeze(2), rows[:, :, 4:]], dim=2) * (scores > 0).unsqueeze(2)
    return F.pad(rows, (0, 0, 0, MAX_BOXES - rows.shape[1]))


class TorchvisionDetector(Detector):
    """A detector of torchvision, such as ssdlite320_mobilenet_v3_large, with a head for your classes.

    Args:
        name: torchvision's name of the network: an SSD, SSDlite, RetinaNet, FCOS or FasterRCNN.
        weights: `DEFAULT` or another name of torchvision's weights, downloaded; or a file with weights of this network,
            of any number of classes. Default: none, train from scratch.
        num_classes: number of classes.
        image_size: S, height and width of the images in pixels, a multiple of 32.
        fixes_norms: whether batch norms keep their statistics; default: if there are `weights`.

    For shapes see `Detector`. SSD and SSDlite scale the images to the size that is in their name.

    Raises:
        ValueError: torchvision has no such network, the weights cannot be loaded or do not fit, or a size is wrong.
    """

    def __init__(
        self,
        name: str = "ssdlite320_mobilenet_v3_large",
        weights: str | None = None,
        num_classes: int = 10,
        image_size: int = 320,
        fixes_norms: bool | None = None,
    ) -> None:
        known = [one for one in models.list_models(module=models.detection) if one.split("_")[0] in KINDS]
        check_name(name, known)
        check_sizes("TorchvisionDetector", num_classes=num_classes)
        check_multiples("TorchvisionDetector", 32, image_size=image_size)
        options: dict[str, Any] = {"weights_backbone": None}
        own = {**options, "num_classes": num_classes + 1, "detections_per_img": MAX_BOXES}
        if name.startswith("fcos"):
            own["score_thresh"] = 0.05  # as the other networks
        if not name.startswith("ssd"):
            own |= {"min_size": image_size, "max_size": image_size}
        super().__init__(models.get_model(name, weights=None, **own), num_classes, image_size)
        self.name = name
        self.weights = weights
        self.fixes_norms = weights is not None if fixes_norms is None else fixes_norms
        self.rebuild = {"weights": None, "fixes_norms": self.fixes_norms}  # a checkpoint holds the weights
        if weights is not None:
            file = weights_file(weights)
            state = build_net(name, weights, **options).state_dict() if file is None else read_weights(file)
            load_weights(self.net, state, weights, name, replaced=("classification_head", "box_predictor"))
        transform = self.net.transform  # of images that are normalised already
        mean, std = torch.tensor(transform.image_mean), torch.tensor(transform.image_std)
        transform.image_mean, transform.image_std = ((mean - MEAN) / STD).tolist(), (std / STD).tolist()
        self.train()

    def train(self, mode: bool = True) -> "TorchvisionDetector":
        super().train(mode)
        for module in self.modules():
            if self.fixes_norms and isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class SmallFCOS(Detector):
    """FCOS (Tian et al. 2019) on a small convolutional network, for small images and objects; from scratch only.

    Args:
        num_classes: number of classes.
        image_size: S, height and width of the images in pixels, a multiple of 32.
        width: channels at half the size; each of the three later stages has twice as many as the one before.
        channels: of the feature pyramid and the head, a multiple of 32.
        depth: convolutions of the head for classes, and of that for boxes.

    For shapes see `Detector`. Boxes are predicted at every 4th, 8th and 16th pixel.

    Raises:
        ValueError: a size is out of range.
    """

    def __init__(
        self, num_classes: int = 10, image_size: int = 128, width: int = 16, channels: int = 64, depth: int = 2
    ) -> None:
        check_sizes("SmallFCOS", num_classes=num_classes, width=width, depth=depth)
        check_multiples("SmallFCOS", 32, image_size=image_size, channels=channels)
        anchors = AnchorGenerator(((4,), (8,), (16,)), ((1.0,),) * 3)
        net = FCOS(
            _Pyramid(width, channels),
            num_classes + 1,
            anchor_generator=anchors,
            head=FCOSHead(channels, 1, num_classes + 1, depth),
            min_size=image_size,
            max_size=image_size,
            image_mean=[0.0] * 3,
            image_std=[1.0] * 3,
            score_thresh=0.05,
        )
        super().__init__(net, num_classes, image_size)
        self.width = width
        self.channels = channels
        self.depth = depth


class _Pyramid(nn.Module):
    """(B, 3, S, S) float -> feature maps (B, channels, S / 4, S / 4), and half and a quarter of that."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        sizes = [3, *(width * 2**stage for stage in range(4))]
        self.stages = nn.ModuleList(
            nn.Sequential(*_convolution(sizes[number], size, stride=2), *_convolution(size, size))
            for number, size in enumerate(sizes[1:])
        )
        self.pyramid = FeaturePyramidNetwork(sizes[2:], channels)
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number:
                maps[str(number)] = x
        return self.pyramid(maps)


def _convolution(channels: int, out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
