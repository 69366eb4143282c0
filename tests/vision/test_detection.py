"""Object detection from training to use: scenes, metrics, processes, tables, export, service."""

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from PIL import Image, ImageOps
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from src import ROOT
from src.engine.data.loading import Indices
from src.engine.deploy.inference import Inference
from src.engine.deploy.predicting import predict
from src.engine.system.errors import InputError
from src.engine.tensorboard.task_pictures import TaskPictures
from src.vision.detection import DetectionTask, box_figure
from src.vision.digit_scenes import DigitScenesDataModule
from src.vision.mnist import INVERTED, MNISTDataModule
from tests.conftest import Run, fit, once, program, trainer
from tests.contract import check_prepare
from tests.engine.deploy.exports import example, written
from tests.engine.deploy.served import Service, browser, service
from tests.engine.runs.processes import DDP, metrics, run_in
from tests.engine.runs.stops import differences_after_stops
from tests.engine.tensorboard.toys import drawn
from tests.vision.fixed import Fixed

Train = Callable[..., Run]
RECIPE = f"--config={ROOT / 'configs' / 'vision' / 'digit_detection.yaml'}"
SMALL = (
    RECIPE,
    "--data.source=sample",
    "--data.image_size=64",
    "--data.max_digits=2",
    "--data.eval_scenes=21",
    "--data.batch_size=20",
    "--model.net.width=8",
    "--model.net.channels=32",
)
NAN, END = [torch.nan] * 5, [0.0, 0, 0, 0, -1]


@pytest.fixture
def recipe() -> tuple[str, ...]:
    return ()


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a small detector that finds most digits."""
    words = (*SMALL, "--data.scenes=3200", "--max_epochs=1", "--model.threshold=0.3", "--optimizer.lr=0.01")
    return once(tmp_path_factory, "detector", lambda folder: fit(folder, *words))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tensor]]:
    """Test scenes as files, and their targets."""
    folder = tmp_path_factory.mktemp("scenes")
    data = small_data()
    drawn = [data.test_set.draw(seed) for seed in range(12)]
    for number, (scene, _) in enumerate(drawn):
        Image.fromarray(scene).resize((128, 64), Image.Resampling.NEAREST).save(folder / f"{number:02}.png")
    return folder, [targets[targets[:, 4] >= 0] for _, targets in drawn]


def small_data(**arguments: Any) -> DigitScenesDataModule:
    data = DigitScenesDataModule(source="sample", **{"image_size": 64, "max_digits": 2, "eval_scenes": 12, **arguments})
    data.setup("fit")
    return data


def test_a_scene_depends_on_seed_and_index_only_and_in_training_on_the_epoch() -> None:
    one, other = small_data(), small_data()
    for name in ("train_set", "val_set", "test_set"):
        images, targets = getattr(one, name).__getitems__([3, 5])
        again, more = getattr(other, name).__getitems__([5, 3])
        assert torch.equal(images, again.flip(0))
        assert torch.equal(targets, more.flip(0))
        assert not torch.equal(images[0], images[1])
    indices = Indices([3, 5])
    indices.epoch_seed = 1
    assert not torch.equal(one.train_set.__getitems__(indices)[0], one.train_set.__getitems__([3, 5])[0])


def test_a_part_has_its_own_digits_only() -> None:
    data, mnist = small_data(), MNISTDataModule(source="sample")
    mnist.setup("fit")
    parts = (data.train_set, data.val_set, data.test_set)
    own = (mnist.train_set, mnist.val_set, mnist.test_set)
    assert all((part.digits == digits.images.numpy()).all() for part, digits in zip(parts, own, strict=True))
    assert len({part.seed for part in parts}) == 3


def test_boxes_hold_all_of_the_ink_and_a_margin_of_one_pixel() -> None:
    data = small_data(image_size=128, max_digits=6)
    counts = set()
    for seed in range(30):
        scene, targets = data.train_set.draw(seed)
        canvas, boxes = torch.from_numpy(scene).int(), targets[targets[:, 4] >= 0]
        counts.add(len(boxes))
        for x1, y1, x2, y2 in (boxes[:, :4] * 128).round().int().tolist():
            box = canvas[y1:y2, x1:x2]
            assert not box[[0, -1]].any()
            assert not box[:, [0, -1]].any()
            assert all(line.any() for line in (box[1], box[-2], box[:, 1], box[:, -2]))
            canvas[y1:y2, x1:x2] = 0
        assert not canvas.any()
    assert {1, 5} < counts


def test_prepare_gives_what_the_network_is_tested_on() -> None:
    data = small_data(batch_size=12)
    pixels = (
        data.test_set.__getitems__(list(range(12)))[0] * torch.tensor(data.pixel_std)[:, None, None] * 255
    ).round()
    raw = (pixels + torch.tensor(data.pixel_mean)[:, None, None] * 255).round().byte()
    check_prepare(data, [Image.fromarray(one.movedim(0, -1).numpy()) for one in raw])


def measured(boxes: list[list[list[float]]], targets: list[list[list[float]]]) -> dict[str, float]:
    task = DetectionTask(Fixed(torch.tensor(boxes)))
    task.test_step((torch.zeros(len(targets), 3, 32, 32), torch.tensor(targets)), 0)
    return {name: float(task.average_precision()[name]) for name in ("map", "map_50")}


def test_precision_counts_boxes_by_overlap_and_no_image_that_is_padding() -> None:
    true = [[0.1, 0.1, 0.5, 0.5, 1.0], END]
    right = [[0.1, 0.1, 0.5, 0.5, 0.9, 1.0], [0.0] * 6]
    assert measured([right], [true]) == pytest.approx({"map": 1, "map_50": 1})
    wide = [[0.1, 0.1, 0.5, 0.74, 0.9, 1.0], [0.0] * 6]  # overlap 0.625
    assert measured([wide], [true]) == pytest.approx({"map": 0.3, "map_50": 1})
    other = [[0.1, 0.1, 0.5, 0.5, 0.9, 2.0], [0.0] * 6]
    assert measured([other], [true])["map"] == 0
    false = [[0.1, 0.1, 0.5, 0.5, 1.0, 1.0], [0.0] * 6]
    assert measured([right, false], [true, [END, END]])["map"] == pytest.approx(0.5)
    assert measured([right, false], [true, [NAN, NAN]])["map"] == pytest.approx(1)


def test_the_loss_is_weighted_by_the_images_that_count() -> None:
    true = [[0.1, 0.1, 0.5, 0.5, 1.0], END]
    task = DetectionTask(Fixed(torch.zeros(3, 2, 6)))
    loss, seen = task.step((torch.zeros(3, 3, 32, 32), torch.tensor([true, [END, END], [NAN, NAN]])))
    assert (loss.item(), int(seen["weight"])) == (1, 2)


def test_outputs_are_compared_whatever_their_order() -> None:
    task = DetectionTask(Fixed(torch.zeros(1)))
    one = torch.tensor([[[0.1, 0.1, 0.5, 0.5, 0.9, 1], [0.3, 0.3, 0.8, 0.8, 0.9, 2], [0.1, 0.1, 0.2, 0.2, 0.1, 0]]])
    assert task.difference(one, one.flip(1)) == 0
    assert task.difference(one, one[:, :2]) == 0  # the last one has a low score
    assert task.difference(one, one[:, 1:]) > 0.1
    assert task.difference(one[:, 1:], one) > 0.1
    moved = one.clone()
    moved[0, 0, 2] += 0.01
    assert task.difference(one, moved).item() == pytest.approx(0.01)


def test_the_figure_shows_true_and_predicted_boxes() -> None:
    samples = [
        {
            "inputs": torch.rand(3, 8, 8),
            "target": torch.tensor([[0.1, 0.1, 0.5, 0.5, 1.0], END]),
            "preds": torch.tensor([[0.2, 0.1, 0.5, 0.5, 0.9, 1.0]]),
        }
    ]
    (axes,) = box_figure(samples, ["a", "$b$"]).axes
    assert [one.get_x() for one in axes.patches] == pytest.approx([0.1, 0.2])
    assert drawn(axes.texts) == ["$b$", "$b$ 0.90"]


@pytest.mark.slow
def test_a_run_logs_precision_by_class_and_shows_boxes(train: Train) -> None:
    run = train(*SMALL, "--data.scenes=40", "--data.eval_scenes=3", "--max_epochs=1")
    assert {"val/loss", "val/map", "val/map_50", "test/loss", "test/map", "test/map_50"} <= run.metrics.keys()
    assert any(name.startswith("test/map_") and name[-1].isdigit() for name in run.metrics)
    assert any(isinstance(one, TaskPictures) for one in run.cli.trainer.callbacks)  # type: ignore[attr-defined]
    events: Any = EventAccumulator(str(run.folder), size_guidance={"images": 0}).Reload()
    assert {"test/boxes", "network/a batch after augmentation"} <= set(events.Tags()["images"])


def test_a_class_without_true_boxes_has_no_precision(tmp_path: Path) -> None:
    found = torch.tensor([[[0.1, 0.1, 0.5, 0.5, 0.9, 1.0], [0.6, 0.6, 0.9, 0.9, 0.9, 2.0]]])
    batch = (torch.zeros(1, 3, 32, 32), torch.tensor([[[0.1, 0.1, 0.5, 0.5, 1.0], END]]))
    (logged,) = trainer(tmp_path).test(DetectionTask(Fixed(found)), DataLoader([batch], None), verbose=False)
    assert {name for name in logged if name.startswith("test/map_")} == {"test/map_50", "test/map_1"}


def test_a_class_that_is_called_50_does_not_replace_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DetectionTask, "label_names", lambda *_: ["10", "50", "20"])
    found = torch.tensor([[[0.1, 0.1, 0.5, 0.4, 0.9, 1.0]]])  # overlap: 0.75
    batch = (torch.zeros(1, 3, 32, 32), torch.tensor([[[0.1, 0.1, 0.5, 0.5, 1.0], END]]))
    (logged,) = trainer(tmp_path).test(DetectionTask(Fixed(found)), DataLoader([batch], None), verbose=False)
    assert logged["test/map_50"] == pytest.approx(1)


@pytest.mark.slow
def test_a_run_that_is_stopped_within_an_epoch_goes_on_bit_by_bit(train: Train, tmp_path: Path) -> None:
    words = (*SMALL, "--data.scenes=20", "--data.eval_scenes=2", "--data.batch_size=4", "--max_epochs=2")
    assert differences_after_stops(train, tmp_path, words, (2, 7), goes_on=words) == []


@pytest.mark.slow
def test_two_processes_count_every_image_once(detector: str, train: Train, tmp_path: Path) -> None:
    few = ("--data.eval_scenes=5", "--data.batch_size=4")
    words = ("test", *SMALL, *few, f"--ckpt_path={detector}", "--precision=64-true")
    one = train(*words).metrics
    run_in(tmp_path / "two", *words, *DDP)  # the last batch has one scene, for two processes
    assert 0.05 < one["test/map"] < 1
    found = metrics(tmp_path / "two")
    names = [name for name in one if name.startswith("test/map")]
    assert len(names) > 3
    assert {name: found[name] for name in names} == pytest.approx({name: one[name] for name in names}, rel=1e-6)


@pytest.mark.slow
def test_two_processes_train(tmp_path: Path) -> None:
    run_in(tmp_path / "two", *SMALL, "--data.scenes=41", "--data.eval_scenes=3", "--max_epochs=1", *DDP)
    assert metrics(tmp_path / "two")["test/map"] >= 0


def overlap(one: list[float], other: list[float]) -> float:
    width, height = (max(0.0, min(one[k + 2], other[k + 2]) - max(one[k], other[k])) for k in (0, 1))
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (area - width * height)


def hits(rows: list[dict[str, Any]], targets: list[Tensor]) -> int:
    """How many of the true boxes are in the rows of their image, which has 128 x 64 pixels."""
    found = 0
    for number, boxes in enumerate(targets):
        own = [row for row in rows if Path(row["input"]).stem == f"{number:02}" and row["label"]]
        for *corners, label in (boxes * torch.tensor([128, 64, 128, 64, 1])).tolist():
            given = [
                [float(row[name]) for name in ("x1", "y1", "x2", "y2")]
                for row in own
                if row["label"] == str(int(label))
            ]
            found += any(overlap(corners, one) > 0.5 for one in given)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predict_writes_a_row_for_each_box_in_pixels_of_the_file(
    suffix: str, detector: str, scenes: tuple[Path, list[Tensor]], tmp_path: Path
) -> None:
    folder, targets = scenes
    Image.new("L", (64, 64)).save(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no image")
    output = tmp_path / f"out{suffix}"
    inputs = [str(tmp_path / "empty.png"), str(tmp_path / "text.png"), str(folder)]
    assert predict(["--ckpt_path", detector, *inputs, "--output", str(output), "--pictures"]) == 3
    rows: list[dict[str, Any]]
    if suffix == ".parquet":
        rows = parquet.read_table(output).to_pylist()
    else:
        rows = list(csv.DictReader(io.StringIO(output.read_text())))
    names = ["input", "label", "score", "x1", "y1", "x2", "y2", "picture", "error", "note"]
    assert list(rows[0]) == names
    assert [row["label"] or "" for row in rows[:2]] == ["", ""]
    assert "not a readable image" in rows[1]["error"]
    assert len({row["input"] for row in rows}) == 14
    count = sum(len(boxes) for boxes in targets)
    assert hits(rows, targets) > 0.5 * count
    pictures = sorted((tmp_path / "out_pictures").iterdir())
    assert len(pictures) == 13
    (drawn,) = {row["picture"] for row in rows if row["input"] == str(folder / "00.png")}
    with Image.open(tmp_path / drawn) as image:
        assert image.size == (128, 64)
        assert len(set(image.convert("RGB").get_flattened_data())) > len(
            set(Image.open(folder / "00.png").convert("RGB").get_flattened_data())
        )


@pytest.mark.slow
def test_predict_of_two_processes_writes_the_same_table(
    detector: str, scenes: tuple[Path, list[Tensor]], tmp_path: Path
) -> None:
    words = ["--ckpt_path", detector, str(scenes[0]), "--accelerator=cpu", "--precision=32-true", "--pictures"]
    assert predict([*words, "--output", str(tmp_path / "out.csv"), "--batch_size=1"]) == 0
    more = ("--batch_size=1", "--devices=2", "--strategy=ddp", "--output", str(tmp_path / "two" / "out.csv"))
    (tmp_path / "two").mkdir()
    done = program(*words, *more, module="src.predict")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "12 inputs written" in done.stderr
    assert (tmp_path / "two" / "out.csv").read_text() == (tmp_path / "out.csv").read_text()


@pytest.mark.slow
def test_pictures_are_for_boxes_and_truth_is_not(
    digits: str, detector: str, scenes: tuple[Path, list[Tensor]], tmp_path: Path
) -> None:
    words = [str(scenes[0]), "--output", str(tmp_path / "out.csv")]
    with pytest.raises(InputError, match="--pictures: ImageClassifier finds no boxes to draw: leave it out"):
        predict(["--ckpt_path", digits, *words, "--pictures"])
    with pytest.raises(InputError, match="--truth: boxes are scored only by"):
        predict(["--ckpt_path", detector, *words, "--truth", "folder"])


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
@pytest.mark.slow
def test_a_detector_is_exported_with_its_boxes(
    form: str, detector: str, scenes: tuple[Path, list[Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, said = written(detector, form, tmp_path)
    difference = re.search(r"largest difference (\S+) over 21 validation samples", said)
    assert difference
    assert float(difference[1]) <= 1e-4
    shown = example(output, str(scenes[0] / "00.png"), monkeypatch)
    if form == "onnx":
        assert shown.count("[") == 101  # a box in each row
    session = InferenceSession(output) if form == "onnx" else None
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB").resize((64, 64))) for path in scenes[0].iterdir()])
    pixels = pixels.transpose(0, 3, 1, 2)
    if session:  # another number of images
        inference = Inference(detector, "forward")
        with torch.no_grad():
            expected = inference.net(torch.from_numpy(pixels))
        (found,) = session.run(None, {"pixels": pixels})
        assert (expected[:, :, 4] > 0.3).any()
        assert inference.task.difference(torch.from_numpy(found), expected) < 1e-4


@pytest.mark.slow
def test_a_detector_in_8_bits_is_refused_before_the_export(
    detector: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="--quantize int8 compares accuracies: it is for classifiers only"):
        written(detector, "onnx", tmp_path, "--quantize=int8")
    assert "Exporting" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def detector_service(detector: str) -> Iterator[Service]:
    with service(detector) as found:
        yield found


@pytest.mark.slow
def test_the_service_gives_boxes_in_pixels_of_the_image(
    detector_service: Service, scenes: tuple[Path, list[Tensor]]
) -> None:
    folder, targets = scenes
    rows = []
    for path in sorted(folder.iterdir()):
        for box in detector_service.predict(path.read_bytes()).json["boxes"]:
            rows.append({"input": str(path), **box})
    assert hits(rows, targets) > 0.5 * sum(map(len, targets))
    file = io.BytesIO()
    ImageOps.invert(Image.open(folder / "00.png")).save(file, "PNG")
    assert detector_service.predict(file.getvalue()).json["note"] == INVERTED


@pytest.mark.slow
def test_the_page_draws_boxes_on_the_chosen_image(detector_service: Service, scenes: tuple[Path, list[Tensor]]) -> None:
    path = scenes[0] / "00.png"
    boxes = detector_service.predict(path.read_bytes()).json["boxes"]
    assert boxes
    with browser() as page:
        page.goto(f"http://127.0.0.1:{detector_service.port}/")
        page.set_input_files("#file", str(path))
        page.wait_for_selector(f".boxes[data-boxes='{len(boxes)}']")
        assert page.locator(".row").count() == len(boxes)
        coloured = page.evaluate(
            """() => {
              const canvas = document.querySelector(".boxes"), pixels = canvas.getContext("2d").getImageData(
                0, 0, canvas.width, canvas.height).data;
              let count = 0;
              for (let i = 0; i < pixels.length; i += 4) count += Math.abs(pixels[i] - pixels[i + 2]) > 60;
              return [canvas.width, canvas.height, count];
            }"""
        )
        assert coloured[0] == 2 * coloured[1]
        assert coloured[2] > 50


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--data.scenes=0", "scenes 0 is too small: give at least 1"),
        ("--data.image_size=32", "image_size 32 is too small: give at least 64"),
        ("--data.image_size=100", "image_size 100 does not fit SmallFCOS: give a multiple of 32, such as 96"),
        ("--data.max_digits=0", "max_digits 0 is too small"),
        ("--data.num_workers=-1", "num_workers -1 is out of range"),
    ],
)
def test_a_user_error_is_one_line(word: str, message: str, error_of: Callable[..., str]) -> None:
    assert message in error_of(RECIPE, "--data.source=sample", word)
