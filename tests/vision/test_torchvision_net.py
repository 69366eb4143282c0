import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision import models

from src.engine.training.hyperparameters import rebuild_arguments
from src.vision import torchvision_net
from src.vision.image_classifier import ImageClassifier
from src.vision.image_folder import MEAN, STD
from src.vision.torchvision_net import TorchvisionNet, weights_file
from tests.conftest import pictures

# One network for each way in which torchvision builds the head.
FAMILIES = (
    *("resnet18", "mobilenet_v3_small", "squeezenet1_1", "densenet121", "efficientnet_b0", "shufflenet_v2_x0_5"),
    *("vgg11", "vit_b_16", "swin_t", "convnext_tiny", "maxvit_t", "googlenet", "inception_v3", "alexnet", "mnasnet0_5"),
)


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """The recipe for one's own images."""
    return ("--config=configs/vision/image_folder.yaml",)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gets_a_head_with_the_given_classes(name: str) -> None:
    size = 299 if name == "inception_v3" else 224
    with torch.device("meta"):
        net = TorchvisionNet(name, num_classes=7)
        assert net.eval()(torch.zeros(2, 3, size, size)).shape == (2, 7)
        assert net.train()(torch.zeros(2, 3, size, size)).shape == (2, 7)
    sizes = [getattr(net.head, attribute, None) for attribute in ("out_features", "out_channels")]
    assert 7 in sizes


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(models.resnet18().state_dict(), path)
    return path


def test_weights_from_a_file_are_used_except_for_the_head(weights: Path) -> None:
    torch.manual_seed(1)
    net = TorchvisionNet("resnet18", str(weights), num_classes=3)
    saved = torch.load(weights, weights_only=True)
    own = net.net.state_dict()
    assert all(torch.equal(own[name], saved[name]) for name in saved if not name.startswith("fc."))
    assert own["fc.weight"].shape == (3, 512)
    assert not torch.equal(TorchvisionNet("resnet18", num_classes=3).net.conv1.weight, saved["conv1.weight"])  # type: ignore[union-attr, arg-type]


def test_a_frozen_body_keeps_its_weights_and_batch_statistics(weights: Path) -> None:
    task = ImageClassifier(TorchvisionNet("resnet18", str(weights), num_classes=3, freeze_body=True)).train()
    before = {name: value.clone() for name, value in task.net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    torch.nn.functional.cross_entropy(task(torch.randn(4, 3, 64, 64)), torch.arange(4) % 3).backward()
    optimizer.step()
    changed = {name for name, value in task.net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"net.fc.weight", "net.fc.bias"}


def test_a_checkpoint_does_not_need_the_weights_file(weights: Path) -> None:
    task = ImageClassifier(TorchvisionNet("resnet18", str(weights), num_classes=3))
    assert task.hparams["net"]["init_args"] == {
        "name": "resnet18",
        "weights": None,
        "num_classes": 3,
        "freeze_body": False,
        "image_size": None,
        "options": {},
    }


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("inception_v3", 299), ("googlenet", 224)])
def test_a_network_with_weights_of_its_own_is_rebuilt_as_it_was_trained(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the download: torchvision then scales the inputs, and GoogLeNet has no auxiliary branches.
    whole = models.get_model(name, weights=None, init_weights=False).state_dict()
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *_, **__: whole)
    net = TorchvisionNet(name, "DEFAULT", num_classes=3).eval()
    arguments = ImageClassifier(net).hparams["net"]["init_args"]
    rebuilt = TorchvisionNet(**arguments).eval()
    rebuilt.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, size, size)
    assert torch.equal(rebuilt(x), net(x))
    assert net.net.transform_input


class Named(TorchvisionNet):
    """Takes fewer arguments."""

    def __init__(self, name: str = "squeezenet1_1", weights: str | None = None) -> None:
        super().__init__(name, weights)


def test_a_checkpoint_of_a_subclass_has_its_own_arguments_only() -> None:
    assert rebuild_arguments(Named()) == {"weights": None}


@pytest.mark.slow
def test_weights_of_a_file_are_used_as_torchvision_uses_them(tmp_path: Path) -> None:
    torch.save(models.inception_v3(init_weights=False).state_dict(), tmp_path / "inception.pth")
    for options in (None, {"dropout": 0.3}):
        net = TorchvisionNet("inception_v3", str(tmp_path / "inception.pth"), options=options)
        assert net.net.transform_input
    assert not TorchvisionNet("inception_v3").net.transform_input


def test_the_full_name_of_weights_is_no_file(tmp_path: Path) -> None:
    assert weights_file("ResNet18_Weights.IMAGENET1K_V1") is None
    file = tmp_path / "ResNet18_Weights.pth"
    with pytest.raises(ValueError, match="no such file"):
        weights_file(str(file))
    file.touch()
    assert weights_file(str(file)) == file


def test_a_vit_of_another_size_is_rebuilt_with_it() -> None:
    with torch.device("meta"):
        net = TorchvisionNet("vit_b_16", options={"image_size": 64})
        assert net.rebuild["options"] == {"image_size": 64}
        assert net.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    with pytest.raises(ValueError, match=r"options \{'side': 3\} do not fit resnet18: .*side"):
        TorchvisionNet("resnet18", options={"side": 3})
    with pytest.raises(ValueError, match="num_classes 0 is too small for resnet18"):
        TorchvisionNet(num_classes=0)


def test_an_image_of_one_channel_is_used_three_times() -> None:
    net = TorchvisionNet("squeezenet1_1").eval()
    x = torch.rand(2, 1, 64, 64)
    assert torch.equal(net(x), net(x.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet17",), "torchvision has no network resnet17: give one of resnet18, .*, vit_l_32$"),
        (
            ("vit_b_16", "DEFAULT", 10, False, None, {"image_size": 64}),
            "options {'image_size': 64} do not fit the weights DEFAULT of vit_b_16: The parameter",
        ),
        (("resnet18", "IMAGENET2K"), "resnet18 has no weights of that name; give IMAGENET1K_V1, DEFAULT, or a file"),
        (("resnet18", "missing.pth"), "weights missing.pth: no such file"),
        (("alexnet", "resnet18.pth"), "the weights in .*resnet18.pth do not fit alexnet"),
        (("resnet18", "text.pth"), "text.pth is not a weights file"),
    ],
)
def test_what_cannot_work_is_one_clear_error(
    arguments: tuple[str, ...], message: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weights.parent)
    (weights.parent / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match=message):
        TorchvisionNet(*arguments)


@pytest.mark.slow
def test_the_error_for_a_wrong_image_size_names_one_that_works() -> None:
    with pytest.raises(ValueError, match=r"vit_b_16 does not take images of 64 x 64 pixels .*--data.image_size 224"):
        TorchvisionNet("vit_b_16", image_size=64)
    with pytest.raises(ValueError, match=r"--data.image_size 96$"):
        TorchvisionNet("vit_b_16", image_size=64, options={"image_size": 96})
    assert all(module.training for module in TorchvisionNet("resnet18", image_size=64).modules())


def test_the_error_for_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"DEFAULT of resnet18 could not be downloaded .*give a file"):
        TorchvisionNet("resnet18", "DEFAULT")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--model.net.name=resnet17", "torchvision has no network resnet17"),
        ("--model.net.weights=IMAGENET2K", "resnet18 has no weights of that name"),
        ("--model.net.weights=DEFAULT", "could not be downloaded"),
        ("--model.net.weights=text.pth", "text.pth is not a weights file"),
        ("--model.net.name=vit_b_16", "vit_b_16 does not take images of 64 x 64 pixels"),
    ],
)
def test_errors_that_have_a_cause_in_torchvision_are_one_line_too(
    words: str, expected: str, error_of: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "text.pth").write_text("no weights")
    monkeypatch.chdir(tmp_path)
    assert expected in error_of(f"--data.path={pictures(tmp_path / 'pictures')}", words)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_auxiliary_logits_are_left_out_and_every_parameter_is_trained(name: str) -> None:
    net = TorchvisionNet(name, num_classes=3, image_size=128)
    net(torch.randn(2, 3, 128, 128)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    rebuilt = TorchvisionNet(name, num_classes=3, image_size=128, **net.rebuild)
    assert rebuilt.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize("name", ["mnasnet0_5", "densenet121"])
def test_weights_files_of_torchvision_are_loaded(name: str, tmp_path: Path) -> None:
    state = models.get_model(name).state_dict()
    if name == "densenet121":  # as torchvision's own files
        for key in [*state]:
            state[re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key)] = state.pop(key)
    first = next(value for key, value in state.items() if value.ndim == 4)
    torch.save(state, tmp_path / "weights.pth")
    net = TorchvisionNet(name, str(tmp_path / "weights.pth"), num_classes=3)
    assert torch.equal(next(net.parameters()), first)


def test_weights_that_expect_another_scale_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_net, "HALVES", ("squeezenet1_1",))
    net = TorchvisionNet("squeezenet1_1").eval()
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        assert torch.allclose(net((pixels - mean) / std), net.net((pixels - 0.5) / 0.5), atol=1e-5)
    assert not {"scale", "shift"} & net.state_dict().keys()
