"""Images whose EXIF data is damaged, and damage that PIL reports in many ways."""

import csv
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.engine.data.images import deep_image, original_size, read_image, read_mask, upright_size
from src.engine.deploy.predicting import predict
from tests.conftest import picture
from tests.engine.deploy.served import of

HEAD = b"Exif\0\0II*\0\x08\0\0\0"  # a TIFF directory, from byte 8
# Orientation 6, and a horizontal resolution that is the text "abc" in place of a number.
TEXT = HEAD + struct.pack("<HHHIHHHHI", 2, 0x0112, 3, 1, 6, 0, 0x011A, 2, 4) + b"abc\0" + bytes(4)


def photo(form: str, exif: bytes, mode: str = "L", **options: Any) -> io.BytesIO:
    """An image of 40 x 20 with a white left half, and this EXIF data."""
    image = Image.new("L", (40, 20))
    image.paste(255, (0, 0, 20, 20))
    deep = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    file = io.BytesIO()
    (deep if mode == "I;16" else image).save(file, form, exif=exif, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize("exif", [*(HEAD[: 6 + length] for length in range(4, 9)), b"Exif\0\0" + b" " * 20])
@pytest.mark.parametrize(("form", "mode"), [("JPEG", "L"), ("PNG", "L"), ("PNG", "I;16")])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_image_with_damaged_exif_data_is_read(form: str, mode: str, exif: bytes, tmp_path: Path) -> None:
    file = photo(form, exif, mode, dpi=(72, 72))
    image = read_image(file)
    assert (image.size, original_size(image)) == ((40, 20), (40, 20))
    (tmp_path / "image").write_bytes(file.getvalue())
    assert read_mask(tmp_path / "image").size == (40, 20)
    with Image.open(file) as opened:  # as training checks its files
        assert (deep_image(opened) is not None) == (mode == "I;16")
    with Image.open(file) as opened:
        assert upright_size(opened) == (40, 20)


@pytest.mark.parametrize(("form", "mode"), [("JPEG", "L"), ("PNG", "L"), ("PNG", "I;16"), ("WEBP", "L")])
def test_an_image_is_turned_though_its_exif_data_cannot_be_written_again(form: str, mode: str) -> None:
    image = read_image(photo(form, TEXT, mode))
    pixels = np.asarray(image.convert("L"))
    assert pixels.shape == (40, 20)
    assert pixels[:18].min() > 200 > 50 > pixels[22:].max()
    assert original_size(image) == (20, 40)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_the_original_size_of_a_tiff_is_turned_once(compression: str | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_image(photo("TIFF", exif.tobytes(), compression=compression))
    assert (image.size, original_size(image)) == ((20, 40), (20, 40))


def test_such_an_image_is_a_row_like_any_other(toy_checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(photo("JPEG", HEAD[:10], dpi=(72, 72)).getvalue())
    (tmp_path / "text.jpg").write_bytes(photo("JPEG", TEXT).getvalue())
    given = [str(tmp_path / f"{name}.jpg") for name in ("cut", "text")]
    assert predict([*of(toy_checkpoint), *given, "--output", str(tmp_path / "out.csv")]) == 0


@pytest.mark.parametrize("error", [struct.error("short"), EOFError(), KeyError("tag"), TypeError("no"), RuntimeError()])
def test_damage_of_any_kind_is_an_error_in_its_row(
    error: Exception, toy_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    picture(tmp_path / "a.png", 90, "L")
    monkeypatch.setattr("src.engine.data.images._eight_bits", fail)
    output = tmp_path / "out.csv"
    assert predict([*of(toy_checkpoint), str(tmp_path / "a.png"), "--output", str(output)]) == 3
    with output.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["error"] == f"not a readable image: {str(error) or type(error).__name__}"


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 40 20
%%EndComments
showpage
%%EOF
"""


def test_a_program_in_postscript_that_is_named_like_an_image_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, image = tmp_path / "marker", tmp_path / "x.png"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    image.write_bytes(POSTSCRIPT)
    with Image.open(image) as opened:
        assert opened.format == "EPS"
    for read in (read_image, read_mask):
        with pytest.raises(OSError, match="Ghostscript"):
            read(image)
    assert not marker.exists()
