"""What every kind of task can do: DDP, resume, predict, score, export, pictures."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.engine.deploy.exporting import export
from src.engine.deploy.predicting import predict
from src.tasks.multi_label_classifier import label_curves
from src.tasks.regression_metrics import regression_figures
from src.tasks.sequence_labeler import sequence_figure
from tests import toy
from tests.conftest import Run, program
from tests.contract import check_prepare
from tests.engine.deploy.served import of
from tests.engine.runs.processes import DDP, metrics, run_in, spy
from tests.engine.runs.stops import differences_after_stops
from tests.engine.tensorboard.toys import drawn
from tests.tasks import kinds

Train = Callable[..., Run]
TOY = f"--config={toy.RECIPE}"


@pytest.fixture
def recipe() -> tuple[str, ...]:
    return (TOY,)


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds.TASKS)
def test_two_processes_train_and_test_as_one_does(train: Train, tmp_path: Path, kind: str) -> None:
    words = (*kinds.options(kind), "--precision=64-true", "--max_epochs=1")
    one = train(*words, *spy(tmp_path / "one.json"))
    run_in(tmp_path / "two", TOY, *words, *DDP, *spy(tmp_path / "two.json"))
    losses, others = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert len(losses) == 6
    assert others == pytest.approx(losses, rel=1e-6)
    scores = {name: value for name, value in one.metrics.items() if name.startswith(("train/", "val/", "test/"))}
    assert len(scores) >= 9
    found = metrics(tmp_path / "two")
    assert {name: found[name] for name in scores if name != "train/loss_step"} == pytest.approx(
        {name: value for name, value in scores.items() if name != "train/loss_step"}, rel=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds.TASKS)
def test_a_run_that_is_stopped_within_an_epoch_goes_on_bit_by_bit(train: Train, tmp_path: Path, kind: str) -> None:
    words = (*kinds.options(kind), "--max_epochs=2")
    assert differences_after_stops(train, tmp_path, words, (2, 9), goes_on=words) == []


@pytest.mark.parametrize("kind", kinds.TASKS)
def test_prepare_gives_what_the_network_is_tested_on(kind: str) -> None:
    data = getattr(kinds, f"{kind}Data")()
    check_prepare(data, data.raw())
    data.prepare = lambda inputs: type(data).prepare(data, inputs[::-1])
    with pytest.raises(AssertionError, match="input 0 of prepare"):
        check_prepare(data, data.raw())


def write_inputs(data: Any, folder: Path) -> tuple[list[str], list[str]]:
    """The test samples as files, and the options that name their true values."""
    targets = data.parts[2].tensors[-1]
    raw = data.raw()
    if data.input_kind == "image":
        for number, image in enumerate(raw):
            (folder / "images").mkdir(exist_ok=True)
            image.save(folder / "images" / f"{number:02}.png")
        if targets.ndim < 3:
            return [str(folder / "images")], []
        (folder / "masks").mkdir()
        for number, target in enumerate(targets):
            Image.fromarray(target.int().numpy()).save(folder / "masks" / f"{number:02}.tif")
            (folder / "masks" / f"{number:02}.tif").rename(folder / "masks" / f"{number:02}.png")
        return [str(folder / "images")], ["--truth", str(folder / "masks")]
    rows = [row if isinstance(row, dict) else {"text": row} for row in raw]
    if data.input_kind == "table":
        true = [{"x": x if x == x else "", "y": y} for x, y in targets.tolist()]
    else:
        true = [{"x": " ".join(data.labels[one] for one in row if one >= 0)} for row in targets.tolist()]
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *true[0]])
        writer.writeheader()
        writer.writerows({**row, **values} for row, values in zip(rows, true, strict=True))
    return [str(folder / "table.csv")], ["--truth", ",".join(true[0])]


FIGURES = {
    "Numbers": {"test/predicted and true", "test/residuals"},
    "Facts": {"test/precision and recall"},
    "Masks": {"test/masks", "test/confusion matrix"},
    "Digits": {"test/sequences", "test/confusion matrix"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds.TASKS)
def test_it_draws_predicts_scores_and_exports(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    run = train(*kinds.options(kind), "--max_epochs=1", "--precision=32-true")
    events: Any = EventAccumulator(str(run.folder), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) >= FIGURES[kind]
    checkpoint = of(str(run.folder / "checkpoints" / "best.ckpt"))
    inputs, truth = write_inputs(getattr(kinds, f"{kind}Data")(), tmp_path)
    words = [*checkpoint, *inputs, *truth, "--precision=32-true", "--accelerator=cpu", "--output"]
    capsys.readouterr()
    assert predict([*words, str(tmp_path / "out.csv"), "--batch_size=8"]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert len(printed) == (3 if kind in ("Masks", "Digits") else 4 if truth else 0)
    assert {name: float(value) for name, value in printed.items()} == pytest.approx(
        {name: run.metrics[f"test/{name}"] for name in printed}, rel=1e-3
    )
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 21
    if kind == "Masks":
        assert sum(float(rows[0][f"area_{label}"]) for label in kinds.MasksData.labels) == pytest.approx(1)
        assert Image.open(tmp_path / rows[20]["mask"]).size == (8, 8)
        assert len(list((tmp_path / "out_masks").iterdir())) == 21
    else:
        names = {"Numbers": ["large", "small"], "Digits": ["labels"]}
        facts = ["labels", *(f"probability_{label}" for label in kinds.FactsData.labels)]
        assert list(rows[0]) == ["input", *names.get(kind, facts), "error", "note"]
    export([*checkpoint, "--format=torch", f"--output={tmp_path / 'model.pt2'}"])
    assert "written" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_score_all_inputs_or_say_why_not(train: Train, tmp_path: Path) -> None:
    run = train(*kinds.options("Masks"), "--max_epochs=1", "--precision=32-true")
    (images,), truth = write_inputs(kinds.MasksData(), tmp_path)
    words = (*of(str(run.folder / "checkpoints" / "best.ckpt")), *DDP, *truth, "--accelerator=cpu", "--output")

    def predict_on(given: str, name: str) -> Any:
        out = str(tmp_path / name)
        return program(*words, out, "--precision=32-true", given, module="src.predict", OMP_NUM_THREADS="1")

    done = predict_on(images, "all.csv")
    assert f"iou {run.metrics['test/iou']:.4f}" in done.stdout, done.stderr
    assert len(list((tmp_path / "all_masks").iterdir())) == 21
    few = predict_on(f"{images}/00.png", "few.csv")
    assert few.returncode == 2
    assert "a process has no input that can be used: give more inputs, or --devices 1" in few.stderr
    assert not list(tmp_path.glob("few*"))


def test_dollar_signs_are_drawn_in_the_figures_of_every_task() -> None:
    label = ["$x$"]
    numbers = regression_figures([{"target": torch.ones(1), "preds": torch.ones(1)}] * 2, label)
    curves = label_curves(torch.ones(3, 1, 2, 2), label)
    places = sequence_figure([{"target": torch.zeros(4).long(), "preds": torch.zeros(4).long()}], label)
    for figure in (*numbers.values(), *curves.values(), places):
        figure.canvas.draw()
        assert any("$x$" in text for text in drawn(figure.findobj(Text)))
