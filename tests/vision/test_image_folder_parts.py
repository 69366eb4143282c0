"""Your own images: folds, and images at an address."""

from collections import Counter
from pathlib import Path
from shutil import copy

import pytest
import torch

from src.engine.parts import remote
from tests.conftest import pictures, serving
from tests.contract import check_folds
from tests.vision.test_image_folder import ready


def test_folds_keep_copies_of_an_image_together(tmp_path: Path) -> None:
    path = pictures(tmp_path, 12)
    for number in range(3):
        copy(tmp_path / "red" / f"{number}.{('png', 'jpg', 'bmp')[number]}", tmp_path / "red" / f"copy{number}.bin.png")

    def parts(fold: int | None) -> list[list[bytes]]:
        data = ready(path=path, image_size=16, fold=fold, folds=3)
        return [[file.read_bytes() for file in part.files] for part in (data.train_set, data.val_set, data.test_set)]

    check_folds(parts, 3)
    assert Counter(ready(path=path, image_size=16, fold=3, folds=3).val_set.targets.tolist()).keys() == {0, 1}


def test_images_of_a_server_are_those_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ROOT", tmp_path / "project")
    pictures(tmp_path / "served", 4)
    rows = [f"{path.relative_to(tmp_path / 'served')},{path.parent.name}" for path in find_all(tmp_path / "served")]
    (tmp_path / "served" / "table.csv").write_text("path,label\n" + "\n".join(rows))
    here = ready(path=str(tmp_path / "served" / "table.csv"), image_size=16, val_share=0.25, test_share=0.25)
    with serving(tmp_path / "served") as url:
        for path in (f"{url}table.csv", url):
            there = ready(path=path, image_size=16, val_share=0.25, test_share=0.25)
            assert there.labels == ["green", "red"]
            assert [file.name for file in there.test_set.files] == [file.name for file in here.test_set.files]
            assert torch.equal(there.val_set[0][0], here.val_set[0][0])


def find_all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg", ".bmp"))
