import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.engine.data.images import read_image
from src.engine.deploy.inputs import Input, PreparedInputs, find_images
from src.engine.system.errors import InputError
from src.vision.image_folder import ImageFolderDataModule
from tests.conftest import picture, pictures
from tests.contract import check_prepare


def ready(**arguments: object) -> ImageFolderDataModule:
    data = ImageFolderDataModule(**arguments)  # type: ignore[arg-type]
    data.setup("fit")
    return data


def test_folders_are_classes_and_the_split_is_stratified(tmp_path: Path) -> None:
    data = ready(path=pictures(tmp_path), val_share=0.2, test_share=0.2, batch_size=4, image_size=16)
    assert data.labels == ["green", "red"]
    assert data.network_arguments() == {"num_classes": 2, "in_channels": 3, "image_size": 16}
    parts = (data.train_set, data.val_set, data.test_set)
    counts = [part.targets.bincount().tolist() for part in parts]
    assert counts == [[6, 6], [2, 2], [2, 2]]
    assert len({file for part in parts for file in part.files}) == 20
    assert [part.files for part in (ready(path=str(tmp_path), val_share=0.2, test_share=0.2).test_set,)] == [
        data.test_set.files
    ]


def test_prepare_gives_what_the_network_is_tested_on(tmp_path: Path) -> None:
    data = ready(path=pictures(tmp_path), val_share=0.2, test_share=0.4, image_size=16)
    assert len(data.test_set) == 8
    check_prepare(data, [read_image(file) for file in data.test_set.files])


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_of_any_size_and_mode_become_one_batch(tmp_path: Path, workers: int) -> None:
    data = ready(path=pictures(tmp_path), image_size=16, batch_size=20, num_workers=workers)
    images, targets = next(iter(data.train_dataloader()))
    assert images.shape == (16, 3, 16, 16)
    assert (images.dtype, targets.dtype) == (torch.uint8, torch.int64)
    images, targets = data.on_after_batch_transfer((images, targets), 0)
    red = images[targets == 1].mean(dim=(0, 2, 3))
    assert red[0].item() == pytest.approx((1 - 0.485) / 0.229, abs=0.05)
    assert red[1].item() == pytest.approx(-0.456 / 0.224, abs=0.05)


def test_a_table_of_paths_and_labels_works(tmp_path: Path) -> None:
    pictures(tmp_path / "all")
    rows = [f"all/{file.parent.name}/{file.name},{file.parent.name}" for file in (tmp_path / "all").rglob("*.png")]
    (tmp_path / "table.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    assert ready(path=str(tmp_path / "table.csv")).labels == ["green", "red"]
    (tmp_path / "table.csv").write_text("file,label\n" + "\n".join(rows) + "\n")
    with pytest.raises(InputError, match=r"give --data.path_column"):
        ready(path=str(tmp_path / "table.csv"))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "red" / "text.png").write_text("not a picture")
    (tmp_path / "green" / "empty.jpg").touch()
    with pytest.raises(
        InputError,
        match=r"2 of 22 files cannot be used: .*green/empty.jpg \(the file is empty.*red/text.png \(not a readable",
    ):
        ready(path=str(tmp_path))
    rows = "path,label\nred/0.png,red\ngone.png,green\n"
    (tmp_path / "table.csv").write_text(rows)
    with pytest.raises(InputError, match=r"gone.png \(no such file\)"):
        ready(path=str(tmp_path / "table.csv"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_file_is_named_when_it_is_decoded(tmp_path: Path, workers: int) -> None:
    for name in ("a", "b"):
        for number in range(3):
            path = picture(tmp_path / name / f"{number}.jpg", 0, "L", (200, 200))
            Image.effect_noise((200, 200), 90).save(path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    data = ready(path=str(tmp_path), num_workers=workers)
    with pytest.raises(InputError, match=r"\.jpg cannot be used \(.*truncated.*remove or fix it"):
        next(iter(data.train_dataloader()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no images given: give --data.path"),
        ({"path": "missing"}, "missing: no such folder or table"),
        ({"path": "missing", "image_size": 2}, "image_size 2 is too small"),
        ({"path": "missing", "crop": 0.0}, "crop 0.0 is out of range"),
        ({"path": "missing", "num_workers": -1}, "num_workers -1 is out of range"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ready(**arguments)


def test_too_few_classes_or_images_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in its folders"):
        ready(path=str(tmp_path))
    picture(tmp_path / "a" / "1.png", 0, "L")
    with pytest.raises(InputError, match="one class only, a"):
        ready(path=str(tmp_path))
    picture(tmp_path / "b" / "1.png", 0, "L")
    with pytest.raises(InputError, match="too few for a validation part"):
        ready(path=str(tmp_path))


def test_a_checkpoint_that_comes_after_other_data_is_refused(tmp_path: Path) -> None:
    data = ready(path=pictures(tmp_path / "a"), image_size=8)
    state = data.state_dict()
    data.load_state_dict(state)  # as Lightning's Trainer does after setup
    with pytest.raises(InputError, match=r"other labels than the checkpoint has: build it with ImageFolder"):
        data.load_state_dict({**state, "labels": ["blue", *state["labels"]]})


def test_labels_come_from_the_checkpoint(tmp_path: Path) -> None:
    data = ImageFolderDataModule(pictures(tmp_path))
    data.load_state_dict({"labels": ["blue", "green", "red"]})
    data.setup("test")
    assert (data.num_classes, set(data.train_set.targets.tolist())) == (3, {1, 2})
    other = ImageFolderDataModule(str(tmp_path))
    other.load_state_dict({"labels": ["blue", "green"]})
    with pytest.raises(InputError, match=r"class 'red' is not in the training data: use only blue, green"):
        other.setup("test")


def test_16_bit_greyscale_is_scaled_not_clipped(tmp_path: Path) -> None:
    for name, value in (("dark", 6553), ("light", 58981)):
        for number in range(3):
            picture(tmp_path / name / f"{number}.png", value, "I;16")
    data = ready(path=str(tmp_path), image_size=8)
    found = {data.val_set[index][1].item(): data.val_set[index][0][0].float().mean().item() for index in range(2)}
    assert found[0] == pytest.approx(0.1 * 255, abs=1)
    assert found[1] == pytest.approx(0.9 * 255, abs=1)


def test_folders_named_like_parts_are_an_error(tmp_path: Path) -> None:
    pictures(tmp_path / "train")
    pictures(tmp_path / "val")
    (tmp_path / "annotations").mkdir()
    with pytest.raises(InputError, match=rf"^--data.path {tmp_path}: train, val are parts, not classes: give"):
        ready(path=str(tmp_path))


def of(folder: str) -> set[Path]:
    return {file for file in Path(folder).rglob("*") if file.suffix in (".png", ".jpg", ".bmp")}


@pytest.mark.parametrize("fold", [None, 1])
def test_parts_with_paths_of_their_own_are_not_split(tmp_path: Path, fold: int | None) -> None:
    train, val, test = (str(pictures(tmp_path / part)) for part in ("train", "val", "test"))
    data = ready(path=train, val_path=val, test_path=test, fold=fold)
    files = [set(one.files) for one in (data.train_set, data.val_set, data.test_set)]
    assert files[2] == of(test)
    assert files[0] | files[1] == of(train) | of(val)
    if fold is None:
        assert files[1] == of(val)
    data = ready(path=train, test_path=test)
    assert set(data.test_set.files) == files[2]
    assert len(data.val_set.files) == 2
    assert set(data.train_set.files) | set(data.val_set.files) == of(train)
    with pytest.raises(InputError, match=r"val_path and --data.test_path need --data.path, the images to train on"):
        ready(val_path=val)
    with pytest.raises(InputError, match=r"--data\.val_path nowhere: no such folder or table"):
        ready(path=train, val_path="nowhere")
    picture(Path(val) / "violet" / "0.png", (9, 0, 9))
    with pytest.raises(InputError, match=r"violet/0.png: class 'violet' is not in the training data: use only "):
        ready(path=train, val_path=val)


@pytest.mark.parametrize("fold", [None, 2])
def test_images_of_a_group_are_in_one_part(tmp_path: Path, fold: int | None) -> None:
    rows = []
    for number in range(40):
        picture(tmp_path / f"{number}.png", (number, 0, 0))
        rows.append(f"{number}.png,{'ab'[number // 4 % 2]},patient {number // 4}")
    (tmp_path / "table.csv").write_text("\n".join(["path,label,patient", *rows]))
    data = ready(path=str(tmp_path / "table.csv"), group_column="patient", fold=fold)
    patients = [{int(file.stem) // 4 for file in part.files} for part in (data.train_set, data.val_set, data.test_set)]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 10
    assert all(patients)
    if fold is None:
        (tmp_path / "test.csv").write_text("\n".join(["path,label,patient", *rows[:8]]))
        with pytest.raises(InputError, match=r"^group patient \d of the test data is also in the "):
            ready(path=str(tmp_path / "table.csv"), test_path=str(tmp_path / "test.csv"), group_column="patient")
    with pytest.raises(InputError, match=r"has no column person.* --data\.group_column"):
        ready(path=str(tmp_path / "table.csv"), group_column="person")
    with pytest.raises(InputError, match=r"group_column patient: .* is a folder: give a table, with this column"):
        ready(path=pictures(tmp_path / "folder"), group_column="patient")


def test_a_last_batch_of_one_image_is_dropped_in_training_only(tmp_path: Path) -> None:
    data = ready(path=pictures(tmp_path), image_size=8, batch_size=5)  # 16 train, 2 val
    assert [len(targets) for _, targets in data.train_dataloader()] == [5, 5, 5]
    data.batch_size = 1
    assert [len(targets) for _, targets in data.val_dataloader()] == [1, 1]


def test_hidden_folders_and_files_are_no_samples_and_other_files_are_counted(
    tmp_path: Path, messages: list[str]
) -> None:
    pictures(tmp_path)
    for place in ("red/.ipynb_checkpoints/0.png", "__MACOSX/red/0.png", "red/._0.png"):
        picture(tmp_path / place, (1, 2, 3))
    (tmp_path / "red" / "clip.gif").write_bytes(b"GIF89a")
    data = ImageFolderDataModule(str(tmp_path), image_size=16)
    data.setup("fit")
    files = [file for part in (data.train_set, data.val_set, data.test_set) for file in part.files]
    assert len(files) == 20
    assert not any(".ipynb" in str(file) or "MACOSX" in str(file) or file.name.startswith(".") for file in files)
    assert "Skipped files that are not images: 1 .gif, 1 .txt" in messages
    assert sorted(one.name for one in find_images([str(tmp_path)])) == sorted(map(str, files))


def test_what_lies_beside_the_folders_of_the_classes_is_counted(tmp_path: Path, messages: list[str]) -> None:
    pictures(tmp_path / "all")
    for number in range(3):
        picture(tmp_path / "all" / f"{number}.png", (1, 2, 3))
    (tmp_path / "all" / "horse").symlink_to(tmp_path / "not mounted")
    assert ready(path=str(tmp_path / "all")).labels == ["green", "red"]
    (line,) = (line for line in messages if line.startswith("Skipped"))
    assert "1 broken links" in line
    assert "3 images are not in a folder of a class and are left out" in messages


def test_what_a_folder_holds_is_said_in_few_lines(tmp_path: Path, messages: list[str]) -> None:
    for number in range(5):
        for name in ("cat", "dog"):
            picture(tmp_path / name / f"{number}.png", (number, len(name) + ord(name[0]), 0))
    picture(tmp_path / "rare" / "0.png", (9, 9, 9))
    (tmp_path / "empty").mkdir()
    ready(path=str(tmp_path), val_share=0.2, test_share=0.2)
    assert messages == [
        "Ignored folders without images: empty",
        f"3 classes, 7 training, 2 validation, 2 test images of {tmp_path}",
        "Classes: cat 5, dog 5, rare 1",
        "No validation samples of rare",
        "No test samples of rare",
    ]


def test_copies_in_several_parts_are_reported_by_content(tmp_path: Path, messages: list[str]) -> None:
    for number in range(10):
        picture(tmp_path / "a" / f"{number}.png", (number, 0, 0))
        picture(tmp_path / "b" / f"{number}.png", (7, 7, 7))  # all the same
    data = ready(path=str(tmp_path))
    (val,), (test,) = ([file for file in part.files if "/b/" in str(file)] for part in (data.val_set, data.test_set))
    first = min(file for file in data.train_set.files if "/b/" in str(file))
    assert f"1 validation images are also training images, such as {val}, the same as {first}" in messages
    assert f"1 test images are also training images, such as {test}, the same as {first}" in messages


def test_folders_that_look_the_same_are_an_error_and_case_is_reported(tmp_path: Path, messages: list[str]) -> None:
    for number in range(3):
        for name in ("Cat", "cat", "dog"):
            picture(tmp_path / name / f"{number}.png", (number, ord(name[0]), 0))
    ready(path=str(tmp_path))
    assert any(line.startswith("Labels 'Cat' (3), 'cat' (3) of") for line in messages)
    picture(tmp_path / "dog\u200b" / "0.png", 0, "L")
    with pytest.raises(InputError, match=r"labels 'dog' \(3\), 'dog.u200b' \(1\) of .* look the same"):
        ready(path=str(tmp_path))


def test_deep_images_share_one_range_that_is_said_once_and_stays_in_the_checkpoint(
    tmp_path: Path, messages: list[str]
) -> None:
    for name, value in (("dark", 0.2), ("light", 0.9)):
        for number in range(3):
            values = np.full((8, 8), value, np.float32)
            values[0, 0] = number / 1000
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / name / f"{number}.tif")
            picture(tmp_path / name / f"{number}.png", int(4095 * value), "I;16", (8, 8))
    data = ready(path=str(tmp_path), image_size=8)
    assert [line for line in messages if "more than 8 bits" in line] == [
        f"6 images have more than 8 bits, such as {tmp_path}/dark/0.png: 0 is black, 4095 white",
        f"6 images have more than 8 bits, such as {tmp_path}/dark/0.tif: 0 is black, 1 white",
    ]
    for part in (data.train_set, data.val_set, data.test_set):
        for file, (image, _) in zip(part.files, part, strict=False):
            wanted = 0.2 if file.parent.name == "dark" else 0.9
            assert image[0, 4, 4].item() == pytest.approx(wanted * 255, abs=2), file
    other = ImageFolderDataModule(str(tmp_path))
    other.load_state_dict(data.state_dict())
    (bright,) = (read_image(picture(tmp_path / "bright.png", 255, "I;16"), other.value_ranges),)
    assert np.asarray(bright).max() == 16  # of 4095, as in training; by itself it would be white


def test_training_and_prediction_see_the_same_pixels_and_reasons(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    for name in ("a", "b"):
        for number in range(3):
            file = picture(tmp_path / name / f"{number}.jpg", (number, ord(name), 0), size=(40, 20))
            with Image.open(file) as image:
                image.paste((255, 255, 255), (0, 0, 20, 20))
                image.save(file, exif=exif)
    data = ready(path=str(tmp_path), image_size=16)
    image, _ = data.test_set[0]
    (pixels,) = data.prepare([read_image(data.test_set.files[0])])
    assert torch.equal(image, pixels)
    assert image[0, 1, 8] < 100 < image[0, -2, 8]  # turned
    huge = tmp_path / "a" / "huge.png"
    Image.new("1", (14_000, 14_000)).save(huge)
    inputs = PreparedInputs(lambda: iter([Input("huge", huge)]), lambda _: ((), []), None, 1, 0, 1)
    (reason,) = next(iter(inputs))["errors"]
    assert "196000000 pixels" in reason
    with pytest.raises(InputError, match=rf"1 of 7 files cannot be used: {huge} \({re.escape(reason)}\)"):
        ready(path=str(tmp_path))


def test_images_that_were_added_since_training_are_noticed(tmp_path: Path, messages: list[str]) -> None:
    first = ready(path=pictures(tmp_path))
    for is_changed in (False, True):
        if is_changed:
            picture(tmp_path / "red" / "new.png", (255, 0, 0))
        again = ImageFolderDataModule(str(tmp_path))
        again.load_state_dict(first.state_dict())
        again.setup("test")
        assert any("changed since training, so they are split differently" in line for line in messages) == is_changed


@pytest.mark.parametrize("other", [{"test_share": 0.5}, {"fold": 2, "folds": 5}])
def test_another_share_or_fold_than_in_training_is_noticed(
    other: dict[str, object], tmp_path: Path, messages: list[str]
) -> None:
    first = ready(path=pictures(tmp_path), **({"fold": 1, "folds": 5} if "fold" in other else {}))
    again = ImageFolderDataModule(str(tmp_path), **other)
    again.load_state_dict(first.state_dict())
    again.setup("test")
    assert any("or their shares, have changed since training" in line for line in messages)


def test_colours_of_16_bits_are_said(tmp_path: Path, messages: list[str]) -> None:
    pictures(tmp_path)
    row = b"\0" + struct.pack(">12H", *[4095] * 12)  # four pixels of 12 bits
    chunks = {b"IHDR": struct.pack(">2I5B", 4, 4, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(4 * row), b"IEND": b""}
    body = b""
    for name, one in chunks.items():
        body += struct.pack(">I", len(one)) + name + one + struct.pack(">I", zlib.crc32(name + one))
    path = tmp_path / "red" / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    ready(path=str(tmp_path))
    said = "1 images have colours of 16 bits, of which only the upper 8 are read, such as"
    assert any(line.startswith(f"{said} {path}") for line in messages)
