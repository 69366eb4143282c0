"""Errors in image and network options: one line and exit code 2."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import write

IMAGE_FOLDER = "--config configs/vision/image_folder.yaml"


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """No arguments: each case names its own recipe, or uses the default."""
    return ()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--config default", "--config default: no such file, did you mean configs/default.yaml?"),
        ("--config configs/deflt.yaml", "no such file, did you mean configs/default.yaml?"),
        ("--model ImageClasifier", "--model ImageClasifier: no class of that name, did you mean ImageClassifier"),
        ("--model src.vision.cnn.CN", "--model src.vision.cnn.CN: there is no class CN in src.vision.cnn"),
        ("--model CNN", "--model: CNN is not a LightningModule; networks go to --model.net"),
        ("--model.net CNNN", "--model.net CNNN: no class of that name, did you mean CNN"),
        ("--model.net Convnet", "; this project has CNN, TorchvisionNet, "),
        ("--model.net ABCDEFG", "--model.net ABCDEFG: no class of that name; this project has "),
        ("--data Zahlen", "no class of that name; this project has "),
        ("--data Zahlen", "MNISTDataModule"),
        ("--model.net.widht 8", "--model.net.widht: VGG has no argument widht, did you mean width?"),
        ("--model.net.image_size 2", "image_size 2 is too small for VGG"),
        ("--model.net CNN --model.net.width 0", "width 0 is too small for CNN: give at least 1"),
        ("--model.num_classes 5", "num_classes 5 does not fit VGG, which has 10"),
        ("--data MNIST", "--data MNIST: no class of that name, did you mean MNISTDataModule"),
        ("--data.source offical", "--data.source offical: expected auto, official, sample, did you mean official?"),
        ("--data.source null", "--data.source null: expected auto, official, sample"),
        ("--data.batch_size 0", "batch_size 0 is too small: give at least 1"),
        ("--data.data_dir file/data", "data folder file/data/MNIST/raw cannot be written (Not a directory)"),
        ("--data.source official --data.data_dir empty", "could not be downloaded"),
        (IMAGE_FOLDER, "no images given: give --data.path a folder"),
        (f"{IMAGE_FOLDER} --data.path pictures", "1 of 1 files cannot be used: pictures/a/x.png"),
    ],
)
def test_a_user_error_is_one_line(
    words: str, expected: str, error_of: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "file", "")
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    write(tmp_path / "pictures" / "a" / "x.png", "no picture")
    assert expected in error_of(*words.split())
