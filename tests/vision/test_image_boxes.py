"""Your own images with boxes: both formats, augmentation, and what is wrong with a box."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from src import ROOT
from src.engine.data.images import read_image
from src.engine.parts import remote
from src.engine.system.errors import InputError
from src.vision.image_boxes import COLUMNS, ImageBoxesDataModule
from tests.conftest import Run, picture, serving, write
from tests.contract import check_folds, check_prepare

RECIPE = (
    f"--config={ROOT / 'configs' / 'vision' / 'digit_detection.yaml'}",
    "--data=ImageBoxesDataModule",
    "--data.image_size=64",
)


@pytest.fixture
def recipe() -> tuple[str, ...]:
    return ()


def squares(folder: Path, count: int = 10) -> list[dict[str, Any]]:
    """Images of 100 x 50 pixels, each with a red and a green rectangle; returns rows of a table."""
    rows = []
    for number in range(count):
        image = Image.new("RGB", (100, 50), "black")
        for label, colour, x in (("red", (255, 0, 0), 5), ("green", (0, 255, 0), 55)):
            corners = (x + number % 15, 10, x + number % 15 + 30, 40)
            image.paste(colour, corners)
            rows.append(dict(zip(COLUMNS, (f"{number}.png", *corners, label), strict=True)))
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{number}.png")
    return rows


def table(path: Path, rows: list[dict[str, Any]]) -> str:
    lines = [",".join(COLUMNS), *(",".join(str(row[name]) for name in COLUMNS) for row in rows)]
    return write(path, "\n".join(lines) + "\n")


def coco(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    files = list(dict.fromkeys(row["file"] for row in rows))
    numbers = {"red": 7, "green": 3}
    return {
        "images": [{"id": 10 + number, "file_name": file} for number, file in enumerate(files)],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": [
            {
                "id": 100 + number,
                "image_id": 10 + files.index(row["file"]),
                "category_id": numbers[row["label"]],
                "bbox": [row["x1"], row["y1"], row["x2"] - row["x1"], row["y2"] - row["y1"]],
            }
            for number, row in enumerate(rows)
        ],
    }


def ready(path: str, **arguments: Any) -> ImageBoxesDataModule:
    data = ImageBoxesDataModule(path, **{"image_size": 64, "batch_size": 4, "val_share": 0.2, **arguments})
    data.setup("fit")
    return data


def test_a_table_a_coco_file_and_a_folder_with_one_give_the_same_boxes(tmp_path: Path) -> None:
    rows = squares(tmp_path / "images")
    other = write(tmp_path / "boxes.json", json.dumps(coco(rows)))
    with_table = ready(table(tmp_path / "boxes.csv", rows), images=str(tmp_path / "images"))
    with_coco = ready(other, images=str(tmp_path / "images"))
    Path(other).rename(tmp_path / "images" / "boxes.json")
    with_folder = ready(str(tmp_path / "images"))
    assert with_table.labels == with_coco.labels == ["green", "red"]
    assert with_table.num_classes == 2
    parts = [[one.train_set, one.val_set, one.test_set] for one in (with_table, with_coco, with_folder)]
    assert [len(part) for part in parts[0]] == [7, 2, 1]
    for whole in parts:
        for part, expected in zip(whole[1:], parts[0][1:], strict=True):
            images, targets = part.__getitems__(list(range(len(part))))
            torch.testing.assert_close((images, targets), expected.__getitems__(list(range(len(part)))))
            number = int(part.files[0].stem)
            true = torch.tensor([[5 + number, 10, 35 + number, 40, 1], [55 + number, 10, 85 + number, 40, 0]])
            torch.testing.assert_close(targets[0], true / torch.tensor([100, 50, 100, 50, 1]))


def test_folds_keep_copies_of_an_image_together(tmp_path: Path) -> None:
    path = table(tmp_path / "boxes.csv", squares(tmp_path, 40))  # some images are the same

    def parts(fold: int | None) -> list[list[bytes]]:
        data = ready(path, fold=fold, folds=3)
        return [[file.read_bytes() for file in part.files] for part in (data.train_set, data.val_set, data.test_set)]

    check_folds(parts, 3)


def test_prepare_gives_what_the_network_is_tested_on(tmp_path: Path) -> None:
    data = ready(table(tmp_path / "boxes.csv", squares(tmp_path)), test_share=0.4)
    check_prepare(data, [read_image(file) for file in data.test_set.files])


def test_a_precision_that_would_round_boxes_is_refused(train: Callable[..., Run], tmp_path: Path) -> None:
    path = table(tmp_path / "boxes.csv", squares(tmp_path))
    with pytest.raises(InputError, match=r"^--precision bf16-true rounds the true boxes and classes: give bf16-mixed"):
        train(*RECIPE, f"--data.path={path}", "--precision=bf16-true")


@pytest.mark.parametrize("options", [{"crop": False}, {"flip": False}, {}])
def test_boxes_follow_what_is_done_to_their_image(options: dict[str, bool], tmp_path: Path) -> None:
    data = ready(table(tmp_path / "boxes.csv", squares(tmp_path, 40)), **options)
    plain = ready(str(tmp_path / "boxes.csv"), crop=False, flip=False)
    images, targets = data.train_set.__getitems__(list(range(24)))
    assert not torch.equal(targets, plain.train_set.__getitems__(list(range(24)))[1])
    assert targets.shape == (24, 2, 5)
    red = torch.zeros_like(images)
    for image, rows, shown in zip(images, targets, red, strict=True):
        for x1, y1, x2, y2, label in rows[rows[:, 4] >= 0].tolist():
            assert 0 <= x1 < x2 <= 1
            assert 0 <= y1 < y2 <= 1
            inside = image[:, round(y1 * 64) + 2 : round(y2 * 64) - 2, round(x1 * 64) + 2 : round(x2 * 64) - 2]
            if inside.numel():
                assert (inside[0 if label else 1] > 200).all()  # in the box is the colour that its label says
            shown[
                :, max(round(y1 * 64) - 2, 0) : round(y2 * 64) + 2, max(round(x1 * 64) - 2, 0) : round(x2 * 64) + 2
            ] = 1
    if "crop" in options:  # a crop leaves out boxes whose centre is outside
        assert (images[red == 0] < 60).all()  # and outside of all boxes there is none


def test_images_without_boxes_and_boxes_at_the_edge_count(tmp_path: Path) -> None:
    rows = squares(tmp_path)
    rows[0] |= {"x1": -0.5, "x2": 100.7}
    for number in range(20, 30):
        picture(tmp_path / f"{number}.png", 0, size=(10 + number, 30))
        rows.append({**dict.fromkeys(COLUMNS, ""), "file": f"{number}.png"})
    data = ready(table(tmp_path / "boxes.csv", rows), crop=False, flip=False)
    every = [part.__getitems__(list(range(len(part))))[1] for part in (data.train_set, data.val_set, data.test_set)]
    targets = torch.cat(every)
    assert len(targets) == 20
    assert ((targets[:, :, 4] >= 0).sum(dim=1) == 0).sum() == 10
    assert targets[targets[:, :, 4] >= 0][:, :4].aminmax() == (0, 1)


def wrong(**change: Any) -> Callable[[list[dict[str, Any]]], None]:
    """A change of the box in row 3."""
    return lambda rows: rows[2].update(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            wrong(x2=300),
            r"boxes.csv: 1 of 20 boxes .*: row 3 of 1.png: x1 6, .* outside of the image, which is 100 x 50",
        ),
        (wrong(y1=-20), "row 3 of 1.png: x1 6, y1 -20, x2 36, y2 40: it is outside of the image"),
        (wrong(x1=100.2, x2=100.9), "row 3 of 1.png: .* it is outside of the image"),
        (wrong(x2=6), "row 3 of 1.png: .*it has no area between left and right, or upper and lower edge"),
        (wrong(y2=2), "row 3 of 1.png: .*it has no area"),
        (wrong(x1="six"), "row 3 of 1.png: x1 six, y1 10, x2 36, y2 40: not numbers"),
        (wrong(x1=""), "row 3 of 1.png: .*: not numbers"),
        (wrong(x1="nan"), "row 3 of 1.png: .*: not finite numbers"),
        (wrong(label=" "), "row 3 of 1.png: it has no label"),
        (wrong(x1=0.1, y1=0.1, x2=0.5, y2=0.5), "row 3 of .*; give pixels, not shares of width and height"),
        (wrong(file="gone.png"), r"boxes.csv, row 3: .*gone.png: no such file; --data.images names their folder"),
        (wrong(file=""), "boxes.csv, row 3: column file is empty"),
        (wrong(file="text.png"), "1 of 11 files cannot be used: .*text.png"),
        (wrong(label="red "), None),
        (wrong(label="r\u200bed"), "look the same"),
        (lambda rows: rows.__delitem__(slice(2, None)), "has 1 images, too few for a validation part with boxes"),
        (lambda rows: [row.update({**dict.fromkeys(COLUMNS, ""), "file": row["file"]}) for row in rows], "no boxes"),
    ],
)
def test_a_broken_row_is_named(change: Callable[[Any], Any], message: str | None, tmp_path: Path) -> None:
    rows = squares(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    change(rows)
    path = table(tmp_path / "boxes.csv", rows)
    if message is None:
        assert ready(path).labels == ["green", "red"]
        return
    with pytest.raises(InputError, match=message):
        ready(path)


def test_five_of_many_broken_boxes_are_named(tmp_path: Path) -> None:
    rows = [{**row, "x1": 90, "x2": 80} for row in squares(tmp_path)]
    with pytest.raises(InputError, match=r"20 of 20 boxes .*row 1 of .*row 5 of .*; and 15 more$"):
        ready(table(tmp_path / "boxes.csv", rows))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("annotations", {"bbox": [6, 10, 200, 30]}, r"annotation 3 \(id 102\) of 1.png: .*outside of the image"),
        ("annotations", {"bbox": [6, 10, -1, 30]}, r"annotation 3 \(id 102\) of 1.png: .*no area"),
        ("annotations", {"bbox": [6, 10, 200]}, r"not a COCO file of boxes \(annotation 3: bbox \[6, 10, 200\]\)"),
        ("annotations", {"bbox": "6789"}, r"\(annotation 3: bbox '6789'\): give"),
        ("annotations", {"bbox": [6, 10, 10**400, 30]}, r"\(annotation 3: int too large"),
        ("annotations", {"image_id": [1]}, r"\(annotation 3: unhashable type"),
        ("images", {"id": 10}, r"\(images '0.png' and '2.png' have the same id, 10\)"),
        ("annotations", {"image_id": 99}, r"annotation 3 \(id 102\): image_id 99 is not in the file"),
        ("annotations", {"category_id": 1}, r"annotation 3 \(id 102\): category_id 1 is not in the file"),
        ("images", {"file_name": "gone.png"}, "gone.png: no such file"),
        ("annotations", None, r"is not a COCO file of boxes \(no 'annotations'\): give images with id"),
    ],
)
def test_a_broken_annotation_is_named(key: str, change: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    content = coco(squares(tmp_path))
    if change is None:
        del content[key]
    else:
        content[key][2].update(change)
    with pytest.raises(InputError, match=message):
        ready(write(tmp_path / "boxes.json", json.dumps(content)))


def test_images_of_another_size_than_the_file_says_are_reported(tmp_path: Path, messages: list[str]) -> None:
    content = coco(squares(tmp_path))
    for one in content["images"]:
        one |= {"width": 100, "height": 50}
    ready(write(tmp_path / "boxes.json", json.dumps(content)))
    assert not any("another size" in line for line in messages)
    content["images"][0] |= {"width": 50, "height": 100}
    ready(write(tmp_path / "boxes.json", json.dumps(content)))
    assert any(
        "1 images have another size, such as 0.png is 100 x 50, in this file 50 x 100;" in line for line in messages
    )


def test_crowds_and_boxes_without_area_are_left_out_and_said(tmp_path: Path, messages: list[str]) -> None:
    content = coco(squares(tmp_path))
    content["annotations"][2] |= {"iscrowd": 1, "bbox": [0, 0, 0, 0]}
    content["annotations"][4]["bbox"][2] = 0
    content["annotations"][5]["bbox"][3] = 0.0
    path = write(tmp_path / "boxes.json", json.dumps(content))
    data = ready(path)
    assert sum(len(own) for part in (data.train_set, data.val_set, data.test_set) for _, own in part.boxes) == 17
    assert any("1 annotations with iscrowd are left out" in line for line in messages)
    said = f"{path}: 2 boxes without width or height are left out, such as {path}, annotation 5 (id 104)"
    assert any(said in line for line in messages)


def test_images_that_were_added_since_training_are_noticed(tmp_path: Path, messages: list[str]) -> None:
    rows = squares(tmp_path)
    first = ready(table(tmp_path / "boxes.csv", rows))
    for is_changed in (False, True):
        if is_changed:
            picture(tmp_path / "new.png", 0, size=(100, 50))
            table(tmp_path / "boxes.csv", [*rows, {**rows[0], "file": "new.png"}])
        again = ImageBoxesDataModule(str(tmp_path / "boxes.csv"), image_size=64, val_share=0.2)
        again.load_state_dict(first.state_dict())
        again.setup("test")
        said = [line for line in messages if "changed since training, so they are split differently" in line]
        assert len(said) == is_changed


@pytest.mark.slow
def test_a_table_names_images_at_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ROOT", tmp_path / "project")
    rows = squares(tmp_path / "images")
    here = ready(table(tmp_path / "images" / "boxes.csv", rows))
    with serving(tmp_path / "images") as url:
        there = ready(table(tmp_path / "boxes.csv", [{**row, "file": f"{url}{row['file']}"} for row in rows]))
    for own, expected in ((there.train_set, here.train_set), (there.val_set, here.val_set)):
        assert [file.read_bytes() for file in own.files] == [file.read_bytes() for file in expected.files]
        torch.testing.assert_close(own.boxes, expected.boxes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no images given: give --data.path a COCO .json file or a table of boxes"),
        (("--data.path=gone",), "--data.path gone: no such file or folder; give one COCO .json file or table"),
        (
            ("--data.path=0.png",),
            "--data.path 0.png: no JSON file or table of boxes; give one COCO .json file or table",
        ),
        (("--data.path=empty",), "--data.path empty: no JSON file or table of boxes"),
        (("--data.path=two",), "--data.path two: has a.csv, b.json; give one COCO .json file"),
        (("--data.path=text.json",), "text.json is not a COCO file of boxes (Expecting value"),
        (("--data.path=list.json",), "list.json is not a COCO file of boxes"),
        (("--data.path=other.csv",), "other.csv has no column file, it has a, b: give a table with file, x1, y1"),
        (("--data.path=other.csv", "--data.image_size=2"), "image_size 2 is too small: give at least 4"),
        (("--data.path=boxes.csv", "--data.image_size=60"), "image_size 60 does not fit SmallFCOS: give a multiple"),
        (("--data.path=boxes.csv", "--model.net.image_size=32"), "the data has image_size 64, the network 32"),
        (("--data.path=boxes.csv", "--model.net.num_classes=5"), "the data has 2 classes and SmallFCOS 5"),
        (("--data.path=boxes.csv", "--model.threshold=1"), "threshold 1.0 is out of range"),
        (("--data.path=boxes.csv", "--model.net=CNN"), "CNN has no method losses: give a Detector"),
    ],
)
def test_a_user_error_is_one_line(
    words: tuple[str, ...], message: str, error_of: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "boxes.csv", squares(tmp_path))
    for folder in ("empty", "two"):
        (tmp_path / folder).mkdir()
    for path in ("two/a.csv", "two/b.json", "two/._b.json", "text.json"):
        write(tmp_path / path, "text")
    write(tmp_path / "list.json", "[1]")
    write(tmp_path / "other.csv", "a,b\n1,2\n")
    assert message in error_of(*RECIPE, *words)


def test_a_cache_changes_no_batch(tmp_path: Path) -> None:
    path = table(tmp_path / "boxes.csv", squares(tmp_path / "images"))
    batches = []
    for cache in (False, True):
        data = ready(path, images=str(tmp_path / "images"), cache=cache, crop=False, flip=False)
        batches.append([pixels for _ in range(2) for pixels, _ in data.train_dataloader()])
        assert (data.train_set.cache is not None) == cache
    assert all(torch.equal(one, other) for one, other in zip(batches[0], batches[1], strict=True))


def test_each_part_can_have_a_file_and_a_folder_of_its_own(
    tmp_path: Path, train: Callable[..., Run], messages: list[str]
) -> None:
    rows = {part: squares(tmp_path / part, count) for part, count in (("train", 6), ("val", 3), ("test", 2))}
    for number in range(3):  # not the content of a training image
        Image.open(tmp_path / "val" / f"{number}.png").rotate(180).save(tmp_path / "val" / f"{number}.png")
    files = {part: write(tmp_path / f"{part}.json", json.dumps(coco(own))) for part, own in rows.items()}
    folders = {part: str(tmp_path / part) for part in rows}
    given = {"val_path": files["val"], "val_images": folders["val"], "images": folders["train"]}
    data = ready(files["train"], **given, test_path=files["test"], test_images=folders["test"])
    sets = (data.train_set, data.val_set, data.test_set)
    assert [{str(file.parent) for file in one.files} for one in sets] == [{folder} for folder in folders.values()]
    assert [len(one) for one in sets] == [6, 3, 2]
    assert "2 test images are also training images, such as" in " ".join(messages)
    split = ready(files["train"], **given)
    assert [len(one) for one in (split.train_set, split.val_set, split.test_set)] == [5, 3, 1]
    options = [f"--data.{name}={value}" for name, value in {"path": files["train"], **given}.items()]
    assert train("fit", *RECIPE, *options, "--fast_dev_run").cli.datamodule.val_set.files[0].parent.name == "val"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"label": "blue"}, "val.csv: class 'blue' is not in the training data: use only green, red"),
        ({"file": "gone.png"}, "val.csv, row 1: .*gone.png: no such file; --data.val_images names their folder"),
    ],
)
def test_a_file_of_a_part_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, str], problem: str) -> None:
    rows = squares(tmp_path)
    with pytest.raises(InputError, match=problem):
        ready(table(tmp_path / "boxes.csv", rows), val_path=table(tmp_path / "val.csv", [rows[0] | change]))
    with pytest.raises(InputError, match=r"--data.val_path .*: no such file or folder; give one"):
        ready(str(tmp_path / "boxes.csv"), val_path=str(tmp_path / "other"))
