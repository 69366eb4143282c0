"""Images with captions: parts, folds, targets, and what is checked."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from src.engine.data.images import read_image
from src.engine.system.errors import InputError
from src.multimodal.captions import CaptionDataModule
from tests.contract import check_folds, check_prepare
from tests.multimodal.helpers import captions, own_pairs


@pytest.mark.parametrize("is_own", [True, False])
def test_prepare_gives_what_the_network_is_tested_on(tmp_path: Path, is_own: bool) -> None:
    path = str(own_pairs(tmp_path / "pairs")) if is_own else None
    data = CaptionDataModule(path, source="sample", image_size=16, batch_size=6)
    data.setup("fit")
    images = data.sets["test"].images
    raw = map(read_image, images.files) if is_own else (Image.fromarray(one.numpy()) for one in images.images)
    check_prepare(data, list(raw))


@pytest.mark.parametrize("is_own", [False, True])
def test_folds_share_out_all_images_but_those_of_the_test_part(tmp_path: Path, is_own: bool) -> None:
    path = str(own_pairs(tmp_path / "own")) if is_own else None

    def parts(fold: int | None) -> list[list[object]]:
        data = CaptionDataModule(path, source="sample", image_size=16, fold=fold, folds=3)
        data.setup("fit")
        images = [part.images for part in data.sets.values()]
        return [one.files if is_own else [image.numpy().tobytes() for image in one.images] for one in images]

    check_folds(parts, 3)


@pytest.mark.parametrize("fold", [None, 2])
def test_rows_of_one_image_are_in_one_part_and_have_one_target(fold: int | None, tmp_path: Path) -> None:
    folder = own_pairs(tmp_path / "own").parent
    shutil.copy(folder / "0.png", folder / "copy.png")
    names = [f"{number}.png" for number in range(60)]
    rows = [(name, f"caption {way} of {name}") for way in ("one", "two") for name in (*names, "copy.png")]
    data = CaptionDataModule(str(captions(folder, rows)), image_size=16, fold=fold, folds=3)
    data.setup("fit")
    targets = {}
    for part in data.sets:
        *_, mask, found = data.sets[part].__getitems__(range(len(data.sets[part])))
        own = [rows[row][0].replace("copy", "0") for row in data.rows_of[part]]
        assert len({*own}) == len({*found.tolist()}) == len({*zip(own, found.tolist(), strict=True)})
        assert not targets.keys() & {*own}
        targets |= dict(zip(own, found.tolist(), strict=True))
        assert mask.any(dim=1).all()
    assert len({*targets.values()}) == 60
    assert sum(map(len, data.sets.values())) == len(rows)


def test_validation_and_test_can_have_tables_of_their_own(tmp_path: Path, messages: list[str]) -> None:
    folders = {part: own_pairs(tmp_path / part).parent for part in ("train", "val", "test")}
    tables = {}
    for part, folder, count in zip(folders, folders.values(), (9, 2, 1), strict=True):
        for number in range(count):
            picture = Image.new("RGB", (20, 20), (number * 20, 90, 200) if part != "val" else (200, 9, number))
            picture.save(folder / f"{number}.png")
        ways = ("one", "two") if part == "val" else ("one",)
        rows = [(f"{number}.png", f"caption {way} of {number}") for way in ways for number in range(count)]
        tables[part] = str(captions(folder, rows))
    data = CaptionDataModule(tables["train"], tables["val"], tables["test"], image_size=16)
    data.setup("fit")
    sets = {part: one.images.files for part, one in data.sets.items()}
    assert {part: {file.parent for file in own} for part, own in sets.items()} == {p: {f} for p, f in folders.items()}
    assert {part: len(own) for part, own in sets.items()} == {"train": 9, "val": 4, "test": 1}
    assert any("1 test images are also training images, such as" in line for line in messages)
    split = CaptionDataModule(tables["train"], tables["val"], image_size=16)
    split.setup("fit")
    assert {part: len(one) for part, one in split.sets.items()} == {"train": 8, "val": 4, "test": 1}
    with pytest.raises(InputError, match=r"^--data\.val_path and --data\.test_path need --data\.path, the table to"):
        CaptionDataModule(val_path=tables["val"])


def test_too_few_images_are_one_line(tmp_path: Path) -> None:
    folder = own_pairs(tmp_path / "own").parent
    path = captions(folder, [(f"{number % 2}.png", f"caption {number}") for number in range(20)])
    with pytest.raises(InputError, match=r"captions\.csv has 2 different images, too few for three parts: give"):
        CaptionDataModule(str(path), image_size=16).setup("fit")


def test_own_images_are_prepared_as_in_training_without_their_table(tmp_path: Path) -> None:
    trained = CaptionDataModule(str(own_pairs(tmp_path / "own")), image_size=16)
    trained.setup("fit")
    data = CaptionDataModule(image_size=16)  # a checkpoint that is given by its path has no paths
    data.load_state_dict(trained.state_dict())
    picture = Image.new("RGB", (30, 40), "red")
    assert data.labels == []
    assert torch.equal(data.prepare([picture]), trained.prepare([picture]))


def test_images_that_were_added_since_training_are_noticed(tmp_path: Path, messages: list[str]) -> None:
    path = own_pairs(tmp_path / "own")
    first = CaptionDataModule(str(path), image_size=16)
    first.setup("fit")
    for is_changed in (False, True):
        if is_changed:
            Image.new("RGB", (20, 20), "white").save(tmp_path / "own" / "new.png")
            path.write_text(f"{path.read_text()}new.png,a white picture\n")
        again = CaptionDataModule(str(path), image_size=16)
        again.load_state_dict(first.state_dict())
        again.setup("test")
        said = [line for line in messages if "changed since training, so they are split differently" in line]
        assert len(said) == is_changed


def test_processes_share_a_part_that_is_smaller_than_a_batch_equally(tmp_path: Path) -> None:
    data = CaptionDataModule(str(own_pairs(tmp_path / "own")), image_size=16, batch_size=130)
    data.setup("fit")
    assert len(data.train_set) == 48
    shares = []
    for rank in range(5):
        run: Any = SimpleNamespace(world_size=5, global_rank=rank, num_nodes=1, training=True)
        run.strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = run
        (own,) = data.train_dataloader().sampler  # type: ignore[attr-defined]
        shares.append(len(own))
    assert shares == [9] * 5
