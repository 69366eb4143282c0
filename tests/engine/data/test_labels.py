"""Labels that look alike, and what is said about classes."""

from pathlib import Path
from typing import Any

import pytest

from src.engine.data.labelled_files import Columns, LabelledDataModule, labelled_files
from src.engine.data.labels import check_labels, report_classes
from src.engine.data.split import report_duplicates
from src.engine.system.errors import InputError


@pytest.mark.parametrize(
    "other", ["cafe\u0301", "caf\xe9\u200b", "\ufeffcaf\xe9", "caf\xe9 ", "\xa0caf\xe9", "caf\xad\xe9"]
)
def test_labels_that_look_the_same_are_an_error(other: str) -> None:
    with pytest.raises(InputError) as caught:
        check_labels(["caf\xe9", other, other, "tea"], "own.csv")
    assert f"labels 'caf\\xe9' (1), {other!a} (2) of own.csv look the same" in str(caught.value)
    with pytest.raises(InputError, match="look the same"):
        check_labels([other], "own.csv", known=["caf\xe9"])


def test_a_label_of_another_encoding_is_an_error() -> None:
    with pytest.raises(InputError, match=r"label 'th\\udce9' of own is not valid Unicode: rename it"):
        check_labels(["tea", "th\udce9"], "own")


def test_labels_that_differ_in_case_are_reported(messages: list[str]) -> None:
    check_labels(["Good", "good", "good", "bad", "2", "\xb2"], "own.csv")
    (line,) = messages
    assert line.startswith("Labels 'Good' (1), 'good' (2) of own.csv differ only in case")


def test_classes_are_listed_with_their_counts(messages: list[str]) -> None:
    report_classes(["bad", "good", "new"], {"train": [0, 0, 1, 1, 1], "val": [1], "test": [0, 1, 2]})
    assert messages == [
        "Classes: bad 3, good 5, new 1",
        "No training samples of new",
        "No validation samples of bad, new",
    ]


def test_many_classes_are_one_line_of_the_largest_and_the_smallest(messages: list[str]) -> None:
    targets = [number for number in range(100) for _ in range(number + 1)]
    report_classes([f"c{number}" for number in range(100)], {"train": targets, "test": [*range(100)]})
    (line,) = messages
    assert line.startswith("Classes: c99 101, c98 100, ")
    assert line.endswith(", c80 82, ..., c0 2")


def test_samples_in_several_parts_are_reported_with_an_example(messages: list[str]) -> None:
    parts = {"train": [1, 2, 3], "val": [2, 9], "test": [9, 1, 2]}
    names = {"train": ["a", "b", "c"], "val": ["d", "e"], "test": ["e", "f", "g"]}
    report_duplicates(parts, "images", lambda part, index: names[part][index])
    assert messages == [
        "1 validation images are also training images, such as d, the same as b",
        "1 test images are also validation images, such as e",
        "2 test images are also training images, such as f, the same as a",
    ]


def test_a_class_that_only_looks_like_a_known_one_is_said_to(tmp_path: Path) -> None:
    for part, name in (("train", "caf\xe9"), ("val", "cafe\u0301")):
        for label in (name, "tea"):
            (tmp_path / part / label).mkdir(parents=True)
            (tmp_path / part / label / "1.png").touch()
    paths = {"train": str(tmp_path / "train"), "val": str(tmp_path / "val")}
    with pytest.raises(InputError, match="look the same but differ in Unicode form"):
        labelled_files(paths, Columns())
    data = LabelledDataModule()
    data.load_state_dict({"labels": ["caf\xe9", "tea"]})
    data.paths, data.columns = {"train": paths["val"]}, Columns()
    with pytest.raises(InputError, match="look the same but differ in Unicode form"):
        data.own_files((".png",), "images")


def test_data_with_parts_of_its_own_is_not_split_differently(messages: list[str]) -> None:
    data: Any = LabelledDataModule()
    data.num_classes = 2
    for test, count in (("c", 0), (None, 1)):
        data.paths = {"train": "a", "val": "b", "test": test}
        data.load_state_dict({"labels": ["x", "y"]})
        data.report_changes({"train": ["x", "y"], "val": ["x"]}, "a", "images")
        data.restored_sizes = data.sizes
        data.report_changes({"train": ["x", "y", "y"], "val": ["x"]}, "a", "images")
        assert sum("are split differently" in message for message in messages) == count
