"""Detectors return the boxes of torchvision's own code in one tensor, and load weights of other classes."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torchvision.ops import batched_nms

from src.vision.detector import Detector, SmallFCOS, TorchvisionDetector, best_boxes

TWO_STAGES = "fasterrcnn_mobilenet_v3_large_320_fpn"
NAMES = ["ssdlite320_mobilenet_v3_large", "ssd300_vgg16", "retinanet_resnet50_fpn", "fcos_resnet50_fpn", TWO_STAGES]


def detector(name: str) -> Detector:
    torch.manual_seed(0)
    if name == "SmallFCOS":
        return SmallFCOS(3, 64, width=4, channels=32, depth=1)
    return TorchvisionDetector(name, num_classes=3, image_size=64)


def with_spread_scores(net: Any, least: float) -> None:
    """Give an untrained network a few confident boxes, and never the unused class 0."""

    def spread(module: Any, inputs: Any, logits: Tensor) -> Tensor:
        drawn = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)) * 2 - 4
        return torch.cat([torch.full_like(drawn[..., :1], -100), drawn[..., 1:]], dim=-1)

    net.head.classification_head.register_forward_hook(spread)
    net.score_thresh = least


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SmallFCOS", *NAMES])
def test_boxes_are_those_of_torchvision(name: str) -> None:
    found = detector(name).eval()
    if name != TWO_STAGES:
        with_spread_scores(
            found.net, {"ssdlite320": 0.995, "ssd300": 0.998, "SmallFCOS": 0.5}.get(name.split("_")[0], 0.25)
        )
    else:
        found.net.roi_heads.score_thresh = 0.2
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows, expected = found(images), found.net(list(images))
    assert rows.shape == (2, 100, 6)
    for own, theirs in zip(rows, expected, strict=True):
        count = len(theirs["scores"])
        assert 0 < count < 100
        torch.testing.assert_close(own[:count, :4], theirs["boxes"] / 64, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own[:count, 4], theirs["scores"])
        assert own[:count, 5].tolist() == (theirs["labels"] - 1).tolist()
        assert not own[count:].any()


@pytest.mark.parametrize("name", ["SmallFCOS", NAMES[0]])
def test_weights_may_be_of_another_type(name: str) -> None:
    found = detector(name).eval().bfloat16()
    with torch.no_grad():
        assert found(torch.randn(2, 3, 64, 64).bfloat16()).shape == (2, 100, 6)


@pytest.mark.parametrize("name", ["SmallFCOS", NAMES[0], TWO_STAGES])
def test_evaluation_gives_losses_and_leaves_the_layers_in_their_mode(name: str) -> None:
    found = detector(name).eval()
    before = {key: value.clone() for key, value in found.state_dict().items()}
    targets = [(torch.tensor([[0.1, 0.1, 0.6, 0.7]]), torch.tensor([1])), (torch.zeros(0, 4), torch.zeros(0).long())]
    loss = found.losses(torch.randn(2, 3, 64, 64), targets)
    assert loss.ndim == 0
    assert loss.item() > 0
    assert not any(module.training for module in found.modules())
    assert all(torch.equal(value, before[key]) for key, value in found.state_dict().items())


def test_suppression_is_that_of_torchvision_however_many_boxes_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(4, 150, 2, generator=generator) * 0.5
    boxes = torch.cat([corner, corner + 0.2 + 0.2 * torch.rand(4, 150, 2, generator=generator)], dim=2)
    scores = torch.rand(4, 150, 2, generator=generator)
    rows = best_boxes(boxes, scores, 0.1, 0.5)
    for number in range(4):
        flat = scores[number].flatten()
        whole = boxes[number].repeat_interleave(2, dim=0)
        kept = batched_nms(whole, flat, torch.arange(300) % 2, 0.5)
        kept = kept[flat[kept] > 0.1]
        assert 10 < len(kept) < 100
        assert torch.equal(rows[number, : len(kept), 4], flat[kept])
        assert torch.equal(rows[number, : len(kept), :4], whole[kept])


def test_nothing_above_the_limit_is_no_box() -> None:
    assert not best_boxes(torch.rand(2, 5, 4), torch.zeros(2, 5, 3), 0.1, 0.5).any()


def test_weights_for_other_classes_are_loaded_without_their_head(tmp_path: Path) -> None:
    other = TorchvisionDetector(NAMES[0], num_classes=5, image_size=64)
    torch.save(other.net.state_dict(), tmp_path / "weights.pth")
    found = TorchvisionDetector(NAMES[0], str(tmp_path / "weights.pth"), num_classes=3, image_size=64)
    own, theirs = found.net.state_dict(), other.net.state_dict()
    changed = {key.rpartition("classification_head")[1] for key in own if not torch.equal(own[key], theirs[key])}
    assert changed == {"classification_head"}
    assert {name: own[name].shape for name in own} == {
        name: value.shape for name, value in detector(NAMES[0]).net.state_dict().items()
    }
    assert found.rebuild == {"weights": None, "fixes_norms": True}
    rebuilt = TorchvisionDetector(NAMES[0], num_classes=3, image_size=64, **found.rebuild)  # a run that continues
    for one in (found, rebuilt):
        norms = [module for module in one.train().modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert norms
        assert not any(module.training for module in norms)


def test_images_are_normalised_as_the_network_expects() -> None:
    found = TorchvisionDetector(NAMES[0], num_classes=3, image_size=64)  # takes -1 to 1
    normalised = (torch.full((3, 1, 1), 0.75) - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    torch.testing.assert_close(found.net.transform.normalize(normalised), torch.full((3, 1, 1), 0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "yolo"}, "torchvision has no network yolo: give one of "),
        ({"name": "maskrcnn_resnet50_fpn"}, "no network maskrcnn_resnet50_fpn: give one of fasterrcnn_resnet50_fpn"),
        ({"image_size": 100}, "image_size 100 does not fit TorchvisionDetector: give a multiple of 32, such as 96"),
        ({"num_classes": 0}, "num_classes 0 is too small for TorchvisionDetector: give at least 1"),
        ({"weights": "COCO"}, "has no weights of that name; give COCO_V1"),
        ({"weights": "gone.pth"}, "weights gone.pth: no such file"),
        ({"weights": "text.pth"}, "weights text.pth is not a weights file written by torch.save"),
        ({"weights": "other.pth"}, "the weights in other.pth do not fit ssdlite320_mobilenet_v3_large: "),
        ({"weights": "number.pth"}, "weights number.pth is not a weights file"),
    ],
)
def test_what_cannot_be_built_is_one_line(
    arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"a": torch.zeros(1)}, "other.pth")
    torch.save(3, "number.pth")
    with pytest.raises(ValueError, match=message):
        TorchvisionDetector(**arguments)


def test_images_of_another_size_are_refused() -> None:
    small = detector("SmallFCOS")
    for call in (small, lambda images: small.losses(images, [])):
        with pytest.raises(ValueError, match=r"shape \(1, 3, 32, 32\) do not fit SmallFCOS: it takes \(B, 3, 64, 64\)"):
            call(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="channels 40 does not fit SmallFCOS: give a multiple of 32"):
        SmallFCOS(channels=40)


@pytest.mark.parametrize("name", ["SmallFCOS", TWO_STAGES])
def test_coordinates_are_exact_in_mixed_precision(name: str) -> None:
    found = detector(name).eval()
    outputs: list[Any] = []
    for part in (found.net.head, found.net.anchor_generator) if name != TWO_STAGES else (found.net.roi_heads,):
        part.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found(torch.randn(2, 3, 64, 64))
    leaves = [leaf for leaf in tree_flatten(outputs)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    assert leaves
    assert {leaf.dtype for leaf in leaves} == {torch.float32}
    targets = [(torch.tensor([[0.1, 0.1, 0.6, 0.7]]), torch.tensor([1]))] * 2
    with torch.autocast("cpu", torch.bfloat16):
        assert found.losses(torch.randn(2, 3, 64, 64), targets) > 0


def test_many_objects_are_all_found() -> None:
    place = torch.stack(torch.meshgrid(torch.arange(10), torch.arange(6), indexing="ij"), dim=-1).reshape(60, 2) / 10
    boxes = torch.cat([place, place + 0.08], dim=1).repeat_interleave(13, dim=0)[None]
    scores = torch.where(torch.arange(60) < 40, 0.95, 0.6).repeat_interleave(13)[None, :, None]
    assert (best_boxes(boxes, scores, 0.05, 0.5)[0, :, 4] > 0).sum() == 60


@pytest.mark.slow
def test_weights_with_names_of_older_versions_are_loaded(tmp_path: Path) -> None:
    other = TorchvisionDetector(NAMES[2], num_classes=5, image_size=64).net.state_dict()
    old = {re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", key): one for key, one in other.items()}
    assert old.keys() != other.keys()
    torch.save(old, tmp_path / "weights.pth")
    found = TorchvisionDetector(NAMES[2], str(tmp_path / "weights.pth"), num_classes=3, image_size=64).net.state_dict()
    assert torch.equal(found["backbone.fpn.inner_blocks.0.0.weight"], other["backbone.fpn.inner_blocks.0.0.weight"])
