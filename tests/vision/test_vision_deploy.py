"""Digits and colour images in the commands that predict, export and serve."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from screenshots import draw

from src.engine.data.images import reader
from src.engine.deploy.formats import _example_lines
from src.engine.deploy.inference import Inference
from src.engine.deploy.predicting import predict
from src.vision.image_folder import ImageFolderDataModule
from src.vision.mnist import INVERTED, MNISTDataModule
from tests.conftest import fit, pictures
from tests.contract import check_prepare
from tests.engine.deploy.exports import SUFFIXES, check_format, check_free_sizes, check_int8
from tests.engine.deploy.served import Service, bars_of, browser, service

Digits = tuple[list[Image.Image], list[str]]


@pytest.fixture(scope="module")
def samples() -> Digits:
    """Digits of the test part, and what they are."""
    data = MNISTDataModule(source="sample")
    data.setup("test")
    images = [Image.fromarray(pixels.numpy()) for pixels in data.test_set.images[:40]]
    return images, [str(target) for target in data.test_set.targets[:40].tolist()]


@pytest.fixture(scope="module")
def digit_service(digits: str) -> Iterator[Service]:
    with service(digits) as found:
        yield found


def test_prepare_gives_what_the_network_is_tested_on() -> None:
    data = MNISTDataModule(source="sample", batch_size=100)
    data.setup("test")
    check_prepare(data, [Image.fromarray(pixels.numpy()) for pixels in data.test_set.images])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


CHANGES = {
    "as it is": lambda image: image,
    "large": lambda image: image.resize((300, 300), Image.Resampling.BICUBIC),
    "scan": lambda image: ImageOps.expand(ImageOps.invert(image.resize((140, 140))), (90, 20), "white").convert("RGB"),
    "sheet16": lambda image: Image.fromarray(65535 - np.asarray(image).astype(np.uint16) * 257),
    "palette": lambda image: image.convert("P"),
    "alpha": lambda image: Image.merge("LA", (Image.new("L", image.size, 0), image)),
    "cmyk": lambda image: ImageOps.invert(image).convert("RGB").convert("CMYK"),
}


@pytest.mark.slow
def test_digits_of_any_size_and_mode_are_told_and_dark_ink_is_inverted(
    digits: str, samples: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, change in CHANGES.items():
        (tmp_path / name).mkdir()
        for number, image in enumerate(samples[0]):
            change(image).save(tmp_path / name / f"{number:03}{'.tif' if name == 'cmyk' else '.png'}")
    output = tmp_path / "out.csv"
    assert predict(["--ckpt_path", digits, *(str(tmp_path / name) for name in CHANGES), "--output", str(output)]) == 0
    rows = rows_of(output)
    plain = [row["label"] for row in rows[:40]]
    assert sum(label == target for label, target in zip(plain, samples[1], strict=True)) >= 32
    for place, name in enumerate(CHANGES):
        part = rows[40 * place : 40 * place + 40]
        same = sum(row["label"] == label for row, label in zip(part, plain, strict=True))
        assert same >= (32 if name in ("large", "scan") else 40), name
        inverted = name in ("scan", "sheet16", "alpha", "cmyk")
        assert {row["note"] for row in part} == {INVERTED if inverted else ""}, name
    assert "160 " in capsys.readouterr().err


@pytest.mark.slow
def test_images_in_colour_are_seen_as_validation_sees_them(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    words = ("--config=configs/vision/image_folder.yaml", f"--data.path={tmp_path / 'pictures'}", "--max_epochs=1")
    checkpoint = fit(tmp_path, *words, "--model.net=CNN")
    output = tmp_path / "out.csv"
    exact = ["--precision=32-true", "--accelerator=cpu"]
    assert predict(["--ckpt_path", checkpoint, str(tmp_path / "pictures"), "--output", str(output), *exact]) == 0
    classes = sorted(path.name for path in (tmp_path / "pictures").glob("[!.]*"))
    assert list(rows_of(output)[0])[2:-2] == [f"probability_{name}" for name in classes]
    inference = Inference(checkpoint, data={"path": str(tmp_path / "pictures")})
    inference.data.setup("fit")
    part = inference.data.val_set
    with torch.no_grad():
        expected = inference.predictions((part.__getitems__([0])[0],))["probabilities"][0]
    (row,) = [one for one in rows_of(output) if one["input"] == str(part.files[0])]
    assert [float(row[f"probability_{name}"]) for name in classes] == pytest.approx(expected.tolist(), abs=1e-4)


def program_pixels(data: Any, shape: tuple[int, ...], path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pixels (1, C, S, S) that the program beside an exported model of this data gives to its network."""
    inference = SimpleNamespace(data=data, task=None)
    reference: Any = SimpleNamespace(
        kind="image", names=["pixels"], example=[torch.zeros(shape)], inference=inference, labels=[]
    )
    imported, opened, pixels, *_ = _example_lines(reference, Path("model.onnx"), "math", "")
    monkeypatch.setattr(sys, "argv", ["program", str(path)])
    names: dict[str, Any] = {}
    exec(f"{imported}\n{opened}\n{pixels}", names)
    return names["pixels"]


@pytest.fixture
def turned_photo(tmp_path: Path) -> Path:
    """A picture of 96 x 48 in soft colours that is to be turned by a quarter."""
    row, column = np.mgrid[:48, :96]
    pixels = np.stack([2 * column, 5 * row, 255 - 2 * column], axis=2).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    return tmp_path / "photo.png"


def test_the_program_beside_a_model_of_pictures_turns_and_crops_them(
    turned_photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ImageFolderDataModule("nowhere", image_size=20)
    found = program_pixels(data, (3, 3, 20, 20), turned_photo, monkeypatch)
    expected = data.prepare([reader(data)(turned_photo)]).numpy()
    assert (found.dtype, found.shape) == (np.uint8, expected.shape)
    assert np.abs(found.astype(int) - expected).max() <= 3


def test_the_program_beside_a_model_of_digits_keeps_the_whole_picture(
    turned_photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: Any = MNISTDataModule(source="sample")
    found = program_pixels(data, (3, 1, 28, 28), turned_photo, monkeypatch)
    whole = ImageOps.exif_transpose(Image.open(turned_photo)).convert("L")
    whole = whole.resize((28, 28), Image.Resampling.BILINEAR)
    assert np.array_equal(found, np.asarray(whole)[None, None])
    data.image_example = "ImageOps.mirror(image.resize({size}, Image.Resampling.BILINEAR))"
    found = program_pixels(data, (3, 1, 28, 28), turned_photo, monkeypatch)
    assert np.array_equal(found, np.asarray(ImageOps.mirror(whole))[None, None])


def test_the_program_says_what_it_leaves_out() -> None:
    def opened(data: Any) -> str:
        found: Any = {"inference": SimpleNamespace(data=data, task=None), "example": [torch.zeros(1, 1, 8, 8)]}
        reference: Any = SimpleNamespace(kind="image", names=["pixels"], labels=[], **found)
        return _example_lines(reference, Path("model.onnx"), "math", "")[1]

    assert opened(SimpleNamespace()).endswith("# expects no transparency")
    assert opened(SimpleNamespace(value_ranges={"I": (0, 9)})).endswith("# expects no transparency, 8 bits per channel")
    assert "cut out and centred" in opened(MNISTDataModule(source="sample"))


@pytest.mark.slow
@pytest.mark.parametrize("form", SUFFIXES)
def test_a_cnn_is_exported_to_every_format(
    form: str, digits: str, samples: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, targets = samples
    shown = check_format(digits, form, tmp_path, images[3], monkeypatch)
    if form != "safetensors":
        assert shown == targets[3]
        check_free_sizes(digits, tmp_path / f"model{SUFFIXES[form]}", [(1, 1, 28, 28), (9, 1, 28, 28)], 250)


@pytest.mark.slow
def test_a_cnn_of_int8_is_smaller(digits: str, tmp_path: Path) -> None:
    output = check_int8(digits, tmp_path, least=85)
    assert output.stat().st_size < 0.6 * Path(digits).stat().st_size / 3  # the checkpoint has Adam's moments, too


@pytest.mark.slow
def test_a_scan_that_is_sent_is_inverted(digit_service: Service, samples: Digits) -> None:
    rows: list[list[int]] = np.asarray(samples[0][3]).tolist()
    plain = digit_service.predict(rows).json
    inverted = digit_service.predict([[255 - value for value in row] for row in rows]).json
    assert inverted["note"] == INVERTED
    assert "note" not in plain
    assert inverted["label"] == plain["label"] == samples[1][3]


def strokes_of_a_three() -> list[tuple[float, float]]:
    """Points along a 3, on a square of 280."""
    upper = [(140 + 50 * np.cos(t), 90 + 45 * np.sin(t)) for t in np.radians(range(-150, 91, 10))]
    lower = [(140 + 58 * np.cos(t), 187 + 52 * np.sin(t)) for t in np.radians(range(-90, 151, 10))]
    return [(float(x), float(y)) for x, y in upper + lower]


@pytest.mark.slow
def test_a_three_that_is_drawn_has_the_highest_bar(digit_service: Service) -> None:
    with browser() as page:
        page.goto(f"http://127.0.0.1:{digit_service.port}/")
        draw(page, strokes_of_a_three())
        bars: dict[str, Any] = bars_of(page)
        assert len(bars) == 10
        assert max(bars, key=lambda label: bars[label].probability) == "3"
        assert max(bars, key=lambda label: bars[label].width) == "3"
