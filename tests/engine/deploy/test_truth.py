"""Predictions beside true values, and what a table holds of predictions that are no single class."""

import argparse
import csv
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from src import predict as command
from src.engine.deploy.inference import Inference, mask_image
from src.engine.deploy.inputs import find_images
from src.engine.deploy.predicting import _inputs, predict
from src.engine.system.errors import InputError
from tests.conftest import picture
from tests.engine.deploy.served import TRUSTED, of, one_line, toy_samples


@pytest.fixture
def sorted_images(tmp_path: Path) -> Path:
    """Images of the test part in a folder per class, one of them in a wrong folder."""
    for number, (image, label) in enumerate(zip(*toy_samples(20), strict=True)):
        folder = tmp_path / "sorted" / (label if number else "right")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    return tmp_path / "sorted"


def scores(said: str) -> dict[str, float]:
    return {name: float(value) for name, value in (line.split() for line in said.splitlines())}


def test_folders_are_the_true_classes_of_images(
    toy_checkpoint: str, sorted_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*of(toy_checkpoint), str(sorted_images), "--truth=folder", "--output"]
    assert predict([*words, str(tmp_path / "a.csv"), "--batch_size=6"]) == 0
    found = scores(capsys.readouterr().out)
    assert found.keys() == {"loss", "acc", "f1"}
    assert found["acc"] == pytest.approx(0.95)
    assert predict([*words, str(tmp_path / "b.csv"), "--num_workers=1"]) == 0
    assert scores(capsys.readouterr().out) == pytest.approx(found, rel=1e-3)


def test_the_class_of_a_link_is_the_folder_in_which_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "dog" / "0.png", 3)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").symlink_to(tmp_path / "dog" / "0.png")
    assert [one.truth for one in find_images([str(tmp_path)], "folder")] == ["cat", "dog"]
    monkeypatch.chdir(tmp_path / "dog")
    assert [one.truth for one in find_images(["0.png", "../cat"], "folder")] == ["dog", "cat"]


def test_a_class_folder_may_have_subfolders(tmp_path: Path) -> None:
    for name in ("cat/young/1", "cat/old/2", "dog/3", "other/4"):
        picture(tmp_path / f"{name}.png", 3)

    def truths(folder: Path, labels: list[str]) -> list[str]:
        return [one.truth for one in find_images([str(folder)], "folder", labels=labels)]

    assert truths(tmp_path, ["cat", "dog"]) == ["cat", "cat", "dog", "other"]
    assert truths(tmp_path / "cat", ["cat", "dog"]) == ["cat", "cat"]
    assert truths(tmp_path, ["cat", "dog", tmp_path.name]) == ["cat", "cat", "dog", tmp_path.name]
    assert truths(tmp_path, ["young", "old"]) == ["old", "young", "dog", "other"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_name_of_another_encoding_is_a_row_like_any_other(
    suffix: str, toy_checkpoint: str, sorted_images: Path, tmp_path: Path
) -> None:
    image = next(sorted_images.rglob("*.png"))
    for name in (b"caf\xe9.png", b"ok.png"):
        (sorted_images.parent / os.fsdecode(name)).write_bytes(image.read_bytes())
    given = [os.fsdecode(os.fsencode(tmp_path) + b"/" + name) for name in (b"caf\xe9.png", b"ok.png")]
    table = tmp_path / f"out{suffix}"
    assert predict([*of(toy_checkpoint), *given, "--output", str(table)]) == 0
    content = parquet.read_table(table).to_pylist() if suffix == ".parquet" else table.read_text()
    assert r"caf\udce9.png" in str(content).replace("\\\\", "\\")
    assert "ok.png" in str(content)


@pytest.mark.slow
def test_a_column_is_the_truth_of_texts_and_rows_that_cannot_be_used_do_not_count(
    toy_texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("words,kind\na fine film,good\nan awful film,good\n,bad\nbad and awful,bad\ngood,good\n")
    words = [*of(toy_texts), str(table), "--output"]
    assert predict([*words, str(tmp_path / "a.csv"), "--truth=kind"]) == 3
    assert scores(capsys.readouterr().out)["acc"] == pytest.approx(0.75)
    assert predict([*words, str(tmp_path / "b.csv"), "--truth=kinds"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "has no column kinds, it has words, kind: give --truth" in said.err


def test_labels_come_from_the_state_dict_that_the_data_saved(toy_texts: str) -> None:
    inference = Inference(toy_texts, trust=[TRUSTED])
    assert (type(inference.data)().labels, inference.labels) == ([], ["good", "bad"])


CANNOT = [
    ("toy_texts", "table.csv", "words", r"--truth words: this column is an input of the model; give another"),
    (
        "toy_texts",
        "table.csv",
        "number",
        r"the true value 'one' is none of the labels of ToyTexts, ",
    ),
    ("toy_checkpoint", "images", "nowhere", r"--truth nowhere: give a folder of masks .* or the word folder"),
    (
        "toy_checkpoint",
        "images",
        "folder",
        r"the true value 'images' is none of the labels of ToyData, left, mid",
    ),
    ("toy_checkpoint", "images", "masks", r"--truth: mask masks/a\.png: no such file"),
    ("toy_matcher", "images", "folder", r"--truth: ToyMatcher compares images with texts: leave it out"),
]


@pytest.mark.parametrize(("kind", "given", "truth", "message"), CANNOT)
def test_a_truth_that_cannot_be_used_is_one_line_and_no_table(
    kind: str,
    given: str,
    truth: str,
    message: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "images" / "a.png", 90, "L")
    (tmp_path / "masks").mkdir()
    (tmp_path / "table.csv").write_text("words,number\na film,one\n")
    words = (*of(request.getfixturevalue(kind)), given, "--truth", truth, "--output", "out.csv")
    assert re.search(message, one_line(command.main, monkeypatch, capsys, *words))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks", "table.csv"]


def predicted(
    rows: list[dict[str, Any]], output: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str
) -> list[dict[str, Any]]:
    """The table of a model whose predictions are these rows."""
    monkeypatch.setattr(Inference, "rows", lambda *_: rows)
    folder = output.parent / "images"
    for number in range(len(rows)):
        picture(folder / f"{number}.png", 90, "L")
    assert predict([*of(checkpoint), str(folder), "--output", str(output)]) == 0
    if output.suffix == ".parquet":
        return parquet.read_table(output).to_pylist()
    with output.open(encoding="utf-8", newline="") as file:
        return [json.loads(line) for line in file] if output.suffix == ".jsonl" else list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_lists_are_kept_as_the_format_can(
    toy_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    rows: list[dict[str, Any]] = [{"labels": [], "values": [0.5, 2.0]}, {"labels": ["a", "b c"], "values": [1.0]}]
    found = predicted(rows, tmp_path / f"out{suffix}", monkeypatch, toy_checkpoint)
    if suffix == ".csv":
        assert [(row["labels"], row["values"]) for row in found] == [("", "0.5 2.0"), ("a 'b c'", "1.0")]
    else:
        assert [{name: row[name] for name in ("labels", "values")} for row in found] == rows


def test_masks_lie_in_a_folder_beside_the_table_that_nothing_overwrites(
    toy_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = [torch.full((3, 4), number) for number in (7, 300)]
    found = predicted([{"mask": one} for one in masks], tmp_path / "out.csv", monkeypatch, toy_checkpoint)
    assert [row["mask"] for row in found] == ["out_masks/000001_0.png", "out_masks/000002_1.png"]
    for row, mask in zip(found, masks, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / row["mask"])), mask.numpy())
    with pytest.raises(InputError, match="out_masks already exists: give another --output"):
        predict([*of(toy_checkpoint), str(tmp_path / "images"), "--output", str(tmp_path / "out.jsonl")])
    assert mask_image(masks[0]).mode == "L"


def test_a_prediction_named_like_a_column_of_every_table_is_one_line(
    toy_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="a prediction is named note, like a column of every table: rename it"):
        predicted([{"mask": torch.zeros(2, 2), "note": 1.0}], tmp_path / "out.csv", monkeypatch, toy_checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_columns_named_like_the_targets_may_be_given_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("in,large,small,other\n0,1,2,3\n")
    inference = SimpleNamespace(kind="table", labels=["large", "small"], data=SimpleNamespace(columns=["in"]))
    for truth, expected in (("small,large", ["1", "2"]), ("small,other", ["2", "3"]), ("large", "1")):
        options = argparse.Namespace(inputs=[str(tmp_path / "a.csv")], truth=truth, text_column=None)
        assert [one.truth for one in _inputs(options, inference)()] == [expected]


def test_a_batch_whose_labels_are_all_unknown_is_not_scored_if_it_has_no_shape() -> None:
    def refuse(*_: Any) -> None:
        raise InputError("the shapes differ")

    fake: Any = SimpleNamespace(_is_checked=True, task=SimpleNamespace(test_step=refuse))
    fake._network_inputs = fake.predictions = lambda inputs: inputs
    fake.rows = lambda *_: ["a row"]
    batch = {"inputs": (torch.zeros(2, 3),), "targets": torch.tensor([-100, -100]), "sizes": ()}
    assert Inference.predict_step(fake, batch, 0) == ["a row"]
    for targets in (torch.tensor([-100, 1]), torch.tensor([-100.0, -100.0])):
        with pytest.raises(InputError, match="the shapes differ"):
            Inference.predict_step(fake, {**batch, "targets": targets}, 0)
