"""Helpers for the multimodal tests."""

import csv
from pathlib import Path

from PIL import Image


def own_pairs(folder: Path) -> Path:
    """Write pictures of one colour and a table of captions; returns the table."""
    folder.mkdir()
    rows = []
    for number in range(60):
        colour = ("red", "green", "blue")[number % 3]
        Image.new("RGB", (30 + number, 40), colour).save(folder / f"{number}.png")
        rows.append((f"{number}.png", f"a {colour} picture of size {number}"))
    return captions(folder, rows)


def captions(folder: Path, rows: list[tuple[str, str]]) -> Path:
    """Write a table of the names of images and their captions."""
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    return folder / "captions.csv"
