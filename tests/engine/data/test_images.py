"""Image files of all modes, depths and folders."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from src.engine.data import images
from src.engine.data.files import IMG_EXTENSIONS, find_files, in_threads, skipped_line
from src.engine.data.images import (
    image_error,
    original_size,
    read_image,
)
from tests.conftest import picture

COLOUR = (200, 40, 90)


def lab() -> Image.Image:
    srgb, other = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.new("RGB", (3, 2), COLOUR), srgb, other, outputMode="LAB")
    assert image is not None
    return image


def modes() -> dict[str, tuple[Image.Image, tuple[int, ...]]]:
    """An image of one colour in each mode, and the colour in which it must be read."""
    solid = Image.new("RGB", (3, 2), COLOUR)
    half = Image.new("RGBA", (3, 2), (*COLOUR, 128))
    grey = Image.new("LA", (3, 2), (77, 128))
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, *COLOUR])
    return {
        "1": (Image.new("1", (3, 2), 1), (255,)),
        "L": (Image.new("L", (3, 2), 77), (77,)),
        "LA": (grey, (77, 77, 77, 128)),
        "La": (grey.convert("La"), (77, 77, 77, 128)),
        "P": (palette, COLOUR),
        "PA": (palette.convert("PA"), (*COLOUR, 255)),
        "RGB": (solid, COLOUR),
        "RGBA": (half, (*COLOUR, 128)),
        "RGBa": (half.convert("RGBa"), (*COLOUR, 128)),
        "RGBX": (solid.convert("RGBX"), COLOUR),
        "CMYK": (solid.convert("CMYK"), COLOUR),
        "YCbCr": (solid.convert("YCbCr"), COLOUR),
        "HSV": (solid.convert("HSV"), COLOUR),
        "LAB": (lab(), COLOUR),
        "I": (Image.new("I", (3, 2), 32896), (128,)),
        "I;16": (Image.new("I;16", (3, 2), 32896), (128,)),
        "I;16L": (Image.new("I;16L", (3, 2), 32896), (128,)),
        "I;16B": (Image.new("I;16B", (3, 2), 32896), (128,)),
        "I;16N": (Image.new("I;16N", (3, 2), 32896), (128,)),
        "F": (Image.new("F", (3, 2), 0.5), (128,)),
    }


MODES = modes()


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_read_with_its_colours(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image, colour = MODES[mode]
    assert image.mode == mode
    monkeypatch.setattr(Image, "open", lambda _: image.copy())  # no file format keeps all modes
    found = read_image("any")
    assert found.mode == {1: "L", 3: "RGB", 4: "RGBA"}[len(colour)]
    assert np.abs(np.asarray(found).astype(int) - colour).max() <= 5


# Values of a file, the range of all files of a data set, and the pixels.
DEEP: dict[str, tuple[Any, str, list[int]]] = {
    "float, 0 to 1": (np.float32([[0, 0.5, 1]]), "tif", [0, 128, 255]),
    "float, -1 to 1": (np.float32([[-1, 0, 1]]), "tif", [0, 128, 255]),
    "float, 0 to 255": (np.float32([[0, 100, 200]]), "tif", [0, 100, 200]),
    "float, 0 to 1000": (np.float32([[0, 500, 1000]]), "tif", [0, 128, 255]),
    "float with gaps": (np.float32([[np.nan, 0.5, 1]]), "tif", [0, 128, 255]),
    "double": (np.float64([[0, 0.5, 1]]), "tif", [0, 128, 255]),
    "8 bits in 16": (np.uint16([[0, 128, 255]]), "png", [0, 128, 255]),
    "12 bits in 16": (np.uint16([[0, 2056, 4095]]), "png", [0, 128, 255]),
    "16 bits": (np.uint16([[0, 32896, 65535]]), "png", [0, 128, 255]),
    "16 bits, TIFF": (np.uint16([[0, 32896, 65535]]), "tif", [0, 128, 255]),
    "16 bits, PGM": (np.uint16([[0, 2056, 4095]]), "pgm", [0, 8, 16]),  # the file says 65535
    "signed": (np.int32([[-1000, 0, 1000]]), "tif", [0, 128, 255]),
    "32 bits": (np.int32([[0, 32896, 65535]]), "tif", [0, 128, 255]),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_images_are_scaled_by_their_range(name: str, tmp_path: Path) -> None:
    values, suffix, pixels = DEEP[name]
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    assert np.asarray(read_image(path)).ravel().tolist() == pixels


def test_that_images_have_ranges_of_their_own_is_said_once(tmp_path: Path, messages: list[str]) -> None:
    images._announce_own_range.cache_clear()
    for name, values in (("deep", np.uint16([[4095]])), ("deeper", np.uint16([[9000]])), ("usual", np.uint8([[9]]))):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    for name in ("usual", "deep", "deeper"):
        read_image(tmp_path / f"{name}.png", {})
    assert not messages
    read_image(tmp_path / "usual.png")
    assert not messages
    for name in ("deep", "deeper"):
        read_image(tmp_path / f"{name}.png")
    assert len(messages) == 1
    assert "each image of more than 8 bits is scaled by its own values" in messages[0]


def test_a_range_given_for_a_kind_wins(tmp_path: Path) -> None:
    Image.fromarray(np.uint16([[0, 2056, 4095]])).save(tmp_path / "deep.png")
    pixels = read_image(tmp_path / "deep.png", {"integer": (0, 65535), "float": (0, 1)})
    assert np.asarray(pixels).ravel().tolist() == [0, 8, 16]


@pytest.mark.parametrize(
    ("mode", "value", "tags", "pixel"),
    [
        ("I;16", 100, {TiffImagePlugin.SAMPLEFORMAT: 1, 281: 400}, 25),  # MaxSampleValue
        ("F", 100.0, {341: 200.0}, 100),  # SMaxSampleValue, which fits 8 bits
        ("I;16", 65535, {262: 0}, 0),  # WhiteIsZero
        ("L", 0x80, {TiffImagePlugin.SAMPLEFORMAT: 2, 340: -128, 341: 127}, 0),  # -128, a signed byte
    ],
)
def test_what_a_tiff_says_about_its_values_is_followed(
    mode: str, value: float, tags: dict[int, float], pixel: int, tmp_path: Path
) -> None:
    said = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, number in tags.items():
        said[tag] = number
    Image.new(mode, (2, 1), value).save(tmp_path / "said.tif", tiffinfo=said)
    with Image.open(tmp_path / "said.tif") as opened:
        assert [opened.tag_v2[tag] for tag in tags]  # type: ignore[attr-defined]
    assert np.asarray(read_image(tmp_path / "said.tif")).ravel().tolist() == [pixel, pixel]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_a_transparent_colour_is_transparent_in_every_mode(mode: str, tmp_path: Path) -> None:
    image = Image.new(mode, (2, 1), 0)
    image.putpixel((0, 0), {"RGB": (255, 255, 255)}.get(mode, 1))
    image.save(tmp_path / "clear.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert np.asarray(read_image(tmp_path / "clear.png"))[0, :, 3].tolist() == [255, 0]


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png"])
def test_an_image_is_rotated_as_it_says(suffix: str, tmp_path: Path) -> None:
    image = Image.new("L", (40, 20))
    image.paste(255, (0, 0, 20, 20))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image.save(tmp_path / f"turned.{suffix}", exif=exif)
    pixels = np.asarray(read_image(tmp_path / f"turned.{suffix}"))
    assert pixels.shape == (40, 20)
    assert pixels[:18].min() > 200 > 50 > pixels[22:].max()


def test_a_rotation_that_does_not_exist_is_none(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    Image.new("L", (40, 20)).save(tmp_path / "odd.png", exif=exif)
    assert original_size(read_image(tmp_path / "odd.png")) == (40, 20)


def test_links_are_followed_loops_are_not_and_what_is_skipped_is_counted(tmp_path: Path) -> None:
    folder, other = tmp_path / "all", tmp_path / "other"
    for path in (folder / "sub" / "0.png", other / "1.png", folder / ".git" / "2.png", folder / "._3.png"):
        picture(path, 0, "L")
    (folder / "linked").symlink_to(other)
    (folder / "sub" / "up").symlink_to(folder)
    (other / "back").symlink_to(folder / "linked")
    (folder / "self.png").symlink_to("self.png")
    (folder / "gone.png").symlink_to("no such file.png")
    (folder / "clip.GIF").write_bytes(b"GIF89a")
    (folder / "notes").write_text("no suffix")
    skipped: Counter[str] = Counter()
    found = [str(path.relative_to(folder)) for path in find_files(folder, IMG_EXTENSIONS, skipped)]
    assert found == ["linked/1.png", "sub/0.png"]
    assert skipped_line(skipped, "images") == (
        "Skipped files that are not images: 1 .gif, 2 broken links, 2 looping links, 1 notes"
    )


def test_an_error_of_an_image_is_one_reason(tmp_path: Path) -> None:
    huge = tmp_path / "huge.png"
    Image.new("1", (14_000, 14_000)).save(huge)
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    reasons = []
    for name in ("huge.png", "empty.png", "text.png", "gone.png"):
        with pytest.raises((OSError, Image.DecompressionBombError)) as caught:
            read_image(tmp_path / name)
        reasons.append(image_error(tmp_path / name, caught.value))
    assert reasons[0].startswith("not a readable image: Image size (196000000 pixels) exceeds limit")
    assert reasons[1:] == [
        "the file is empty",
        "not a readable image: cannot identify image file the file",
        "no such file",
    ]


def test_results_of_many_values_are_in_their_order() -> None:
    assert in_threads(lambda number: 2 * number, range(25_000)) == list(range(0, 50_000, 2))
