"""The table of predictions: names that no file can have, numbers that are none, and two runs at the same time."""

import csv
import math
import os
import shlex
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from src.engine.deploy import predicting
from src.engine.deploy.inference import Inference
from src.engine.deploy.inputs import PreparedInputs
from src.engine.deploy.predicting import predict
from src.engine.deploy.prediction_table import _shown
from src.engine.system.errors import InputError, SampleError
from src.engine.system.interruption import Interrupted
from src.tasks.classifier import Classifier
from tests.conftest import picture
from tests.engine.deploy.served import of


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def words(toy_checkpoint: str, tmp_path: Path) -> list[str]:
    """The words of a run on two images, whose table is `out.csv`."""
    for number in range(2):
        picture(tmp_path / "images" / f"{number}.png", 90, "L")
    return [*of(toy_checkpoint), str(tmp_path / "images"), "--output", str(tmp_path / "out.csv")]


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes")
def test_masks_of_files_with_odd_and_long_names_are_written(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inference, "rows", lambda *_: [{"mask": torch.ones(2, 2)}] * 4)
    image = (tmp_path / "images" / "0.png").read_bytes()
    for name in (b"caf\xe9.png", "é".encode() * 120 + b".png"):
        Path(os.fsdecode(os.fsencode(tmp_path / "images") + b"/" + name)).write_bytes(image)
    assert predict(words) == 0
    masks = [row["mask"] for row in table_of(tmp_path / "out.csv")]
    assert masks[2:] == [r"out_masks/000003_caf\udce9.png", f"out_masks/000004_{'é' * 100}.png"]
    assert all((tmp_path / mask).is_file() for mask in masks)


def test_pictures_of_an_address_are_drawn_on_its_copy(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = {"label": "left", "score": 1.0, "x1": 1, "y1": 1, "x2": 5, "y2": 5}
    monkeypatch.setattr(Inference, "rows", lambda *_: [{"boxes": [box]}] * 2)
    monkeypatch.setattr(Classifier, "finds_boxes", True, raising=False)
    copy = str(tmp_path / "images")
    monkeypatch.setattr(predicting, "_copied", lambda given, addresses, _: addresses.setdefault(copy, given) and copy)
    words[words.index(copy)] = "https://host/images"
    assert predict([*words, "--pictures"]) == 0
    assert [row["input"] for row in table_of(tmp_path / "out.csv")] == [f"https://host/images/{n}.png" for n in (0, 1)]
    assert len(list((tmp_path / "out_pictures").iterdir())) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, [0.5, math.nan], {"a": -math.inf}])
def test_a_prediction_that_is_no_number_is_an_error_in_its_row(
    bad: Any, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {float: 1.0, list: [0.5, 1.0], dict: {"a": 1.0}}[type(bad)]
    monkeypatch.setattr(Inference, "rows", lambda *_: [{"label": "left", "value": one} for one in (bad, good)])
    assert predict(words) == 3
    rows = table_of(tmp_path / "out.csv")
    assert [row["label"] for row in rows] == ["", "left"]
    assert [row["error"] for row in rows] == ["the model's output is not a finite number", ""]


def test_masks_written_beside_the_images_are_no_inputs(
    toy_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()

    def rows(_: Any, found: Any, *__: Any) -> Any:
        seen.update(path.name for path in (tmp_path / "b").iterdir() if path.is_dir())
        return [{"mask": torch.zeros(2, 2)}] * len(found["labels"])

    monkeypatch.setattr(Inference, "rows", rows)
    for name in ("a/1", "a/2", "a/3", "b/4"):
        picture(tmp_path / f"{name}.png", 90, "L")
    folders = [str(tmp_path / name) for name in ("a", "b")]
    options = ["--batch_size=1", f"--output={tmp_path / 'b' / 'out.csv'}"]
    assert predict([*of(toy_checkpoint), *folders, *options]) == 0
    assert [Path(row["input"]).name for row in table_of(tmp_path / "b" / "out.csv")] == [
        f"{number}.png" for number in range(1, 5)
    ]
    assert seen
    assert all(name.startswith(".") for name in seen)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_prediction_and_leaves_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int
) -> None:
    monkeypatch.setattr(Inference, "predict_step", lambda *_: os.kill(os.getpid(), signum))
    handlers = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(Interrupted) as stop:
            predict(words)
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    assert stop.value.signum == signum
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_table_that_another_run_finishes_in_the_meantime_is_kept_with_its_masks(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = PreparedInputs.__iter__

    def finish(self: PreparedInputs) -> Any:
        (tmp_path / "out.csv").write_text("mine")
        (tmp_path / "out_masks").mkdir()
        return batches(self)

    monkeypatch.setattr(PreparedInputs, "__iter__", finish)
    with pytest.raises(
        InputError, match=r"out\.csv was written by another run meanwhile: the predictions are in "
    ) as told:
        predict(words)
    kept = Path(str(told.value).partition("are in ")[2])
    assert (kept / "out.csv").is_file()
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [kept.name, "images", "out.csv", "out_masks"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["left", "middle", "lower"], "labels 'left' and 'lower' are the same to this model: give texts that differ"),
        (["left", "left"], "labels 'left' and 'left' are the same to this model"),
        (["left", "r"], "label 'r' is empty to this model: give a text with words it was trained on"),
        (["left", "m "], ""),
    ],
)
def test_labels_that_the_model_cannot_tell_apart_are_refused(
    labels: list[str], message: str, toy_matcher: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inference = Inference(toy_matcher, trust=["tests"])

    def prepare_texts(texts: list[str]) -> Any:
        tokens = torch.tensor(["lmr".index(text[0]) for text in texts])
        return tokens[:, None], tokens[:, None] < 2  # the model knows no r

    monkeypatch.setattr(inference.data, "prepare_texts", prepare_texts)
    monkeypatch.setattr(type(inference.task), "name_classes", lambda *_: None)
    if message:
        with pytest.raises(InputError, match=message):
            inference.name_classes(labels)
    else:
        inference.name_classes(labels)
        assert inference.labels == labels


def test_a_plain_module_that_unpacks_labels_of_its_batch_is_one_line(
    toy_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inference = Inference(toy_checkpoint, trust=["tests"])

    class Plain(LightningModule):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            x, _ = batch
            return x

    monkeypatch.setattr(inference, "task", Plain())
    with pytest.raises(InputError, match=r"^Plain\.predict_step does not take the inputs of ToyData, of shape \(1, "):
        inference.check_on_sample()
    monkeypatch.setattr(inference.data, "prepare", lambda _: (_ for _ in ()).throw(SampleError("no grey image")))
    inference.check_on_sample()  # which says nothing of the module


@pytest.mark.parametrize("given", [[], ["--devices=2", "--strategy=ddp"]])
def test_one_device_predicts_and_more_processes_are_told_the_checkpoint(
    given: list[str], words: list[str], toy_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    def start(*, devices: str, **_: object) -> Any:
        assert devices == ("2" if given else "1")
        return SimpleNamespace(world_size=int(devices), global_rank=1, is_global_zero=False, predict=stop)

    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    monkeypatch.setattr("lightning.pytorch.Trainer", start)
    monkeypatch.setattr(sys, "argv", ["predict"])
    with pytest.raises(StoppedError):
        predict([*words, *given])
    assert sys.argv[1:] == (["--ckpt_path", toy_checkpoint] if given else [])


def test_labels_in_a_cell_can_be_read_back() -> None:
    labels = ["crow's feet", "cat", "two words", 'say "a"']
    assert shlex.split(_shown(labels)) == labels
