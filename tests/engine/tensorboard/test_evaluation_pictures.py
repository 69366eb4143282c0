import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_precision_recall_curve

from src.engine.system.errors import InputError
from src.engine.tensorboard import evaluation_pictures
from src.engine.tensorboard.evaluation_pictures import EvaluationPictures, _table, confusion_figure
from src.engine.tensorboard.task_pictures import TaskPictures
from tests.conftest import Run
from tests.engine.tensorboard.toys import FLAT, drawn

Train = Callable[..., Run]
SMALL = ("--trainer.limit_train_batches=2", "--optimizer.lr=1e-5")  # too small to learn: leaves mistakes to show


def shown(folder: Path) -> Any:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0}).Reload()


def mistakes(events: Any) -> list[list[str]]:
    """The rows of the table of mistakes: confidence, true class, predicted class, input."""
    table = events.Tensors("test/worst mistakes/text_summary")[0].tensor_proto.string_val[0].decode()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.slow
def test_images_have_a_grid_of_mistakes_and_a_curve_for_each_class(train: Train) -> None:
    events = shown(train(*SMALL, "--max_epochs=1").folder)
    assert {"test/confusion matrix", "test/worst mistakes"} <= set(events.Tags()["images"])
    curves = [tag for tag in events.Tags()["tensors"] if tag.startswith("test/precision and recall/")]
    assert sorted(tag.rpartition("/")[2] for tag in curves) == ["left", "middle", "right"]
    assert not any(tag.startswith("val/") for tag in events.Tags()["images"])


@pytest.mark.slow
def test_deterministic_runs_count_as_fast_as_others(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    bincount, bins = torch.bincount, set()

    def spy(values: torch.Tensor, minlength: int = 0) -> torch.Tensor:
        bins.add(minlength)
        return bincount(values, minlength=minlength)

    monkeypatch.setattr(torch, "bincount", spy)
    try:
        train(*SMALL, "--max_epochs=1", "--trainer.deterministic=true")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    # Else torchmetrics compares each sample with each bin.
    assert {3 * 3, 4 * 3 * evaluation_pictures.THRESHOLDS} <= bins  # of the confusion matrix, and of the curves


def test_mistakes_that_are_not_images_are_listed_by_their_first_values(train: Train) -> None:
    run = train(*SMALL, *FLAT, "--max_epochs=1")
    with (run.folder / "confusion_matrix.csv").open() as file:
        header, *found = csv.reader(file)
    assert header[1:] == [row[0] for row in found] == ["left", "middle", "right"]
    counts = torch.tensor([[int(count) for count in row[1:]] for row in found])
    assert counts.sum(dim=1).tolist() == [20, 20, 20]
    assert counts.diagonal().sum().item() / 60 == pytest.approx(run.metrics["test/acc"])
    events = shown(run.folder)
    assert "test/confusion matrix" in events.Tags()["images"]
    assert "test/worst mistakes" not in events.Tags()["images"]
    listed = mistakes(events)
    assert len(listed) == min(evaluation_pictures.WORST, 60 - counts.diagonal().sum())
    for _, true, taken, values in listed:
        assert taken != true
        assert len(values.removesuffix(" ...").split(", ")) == 8
    sure = [int(mistake[0].rstrip("%")) for mistake in listed]
    assert sure == sorted(sure, reverse=True)


def test_a_number_of_epochs_below_zero_is_refused() -> None:
    with pytest.raises(InputError, match="every_n_epochs -1 is too small: give at least 0"):
        EvaluationPictures(every_n_epochs=-1)


@pytest.mark.slow
def test_pictures_can_be_drawn_every_second_epoch(train: Train) -> None:
    words = ("--trainer.callbacks+=EvaluationPictures", "--trainer.callbacks.every_n_epochs=2")
    events = shown(train("fit", *SMALL, "--max_epochs=4", *words).folder)
    assert [image.step for image in events.Images("val/confusion matrix")] == [4, 8]
    assert "test/confusion matrix" not in events.Tags()["images"]


@pytest.mark.slow
def test_a_validation_run_draws_a_confusion_matrix(train: Train, toy_checkpoint: str) -> None:
    run = train("validate", "--ckpt_path", toy_checkpoint)
    assert "val/confusion matrix" in shown(run.folder).Tags()["images"]


def test_a_model_that_is_not_a_classifier_gets_no_pictures(train: Train) -> None:
    boring = "lightning.pytorch.demos.boring_classes"
    words = (f"--model={boring}.BoringModel", f"--data={boring}.BoringDataModule", "--checkpoint.monitor=null")
    run = train(*words, "--trainer.max_steps=2")
    assert run.cli.trainer.state.fn == "test"
    assert shown(run.folder).Tags()["images"] == []
    assert not (run.folder / "confusion_matrix.csv").exists()


def test_the_curve_is_the_precision_recall_curve_of_the_probabilities(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(200, 3, generator=generator), torch.randint(3, (200,), generator=generator)
    confusion = MulticlassConfusionMatrix(3, ignore_index=-100)
    confusion.update(logits, targets)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    state = {"fast_dev_run": False, "testing": True, "world_size": 1, "is_global_zero": True, "global_step": 0}
    trainer: Any = SimpleNamespace(loggers=[logger], default_root_dir=tmp_path, **state)
    metrics = SimpleNamespace(unlogged={"confusion": confusion})
    options = {"num_classes": 3, "confusion": confusion, "metrics": metrics, "device": "cpu"}
    task: Any = SimpleNamespace(**options, probabilities=lambda logits: logits.softmax(1))
    pictures = EvaluationPictures()
    pictures.on_test_start(trainer, task)
    for part in range(4):
        rows = slice(50 * part, 50 * part + 50)
        outputs = {"logits": logits[rows], "targets": targets[rows]}
        second = (torch.zeros(50, 3),) * (part % 2)  # another input
        pictures.on_test_batch_end(trainer, task, outputs, (torch.zeros(50, 4), *second, targets[rows]), part)
    pictures.on_test_end(trainer, task)
    logger.experiment.close()
    events = shown(tmp_path)
    (curve,) = events.Tensors("test/precision and recall/1")
    found = torch.tensor(tensor_util.make_ndarray(curve.tensor_proto))  # (6, thresholds)
    precision, recall, _ = multiclass_precision_recall_curve(logits.softmax(1), targets, 3, thresholds=101)
    assert torch.allclose(found[5], recall[1, :-1])
    some = recall[1, :-1] > 0  # precision is undefined if nothing is found
    assert torch.allclose(found[4][some], precision[1, :-1][some])
    confidences, preds = logits.softmax(1).max(1)
    surest = confidences[preds != targets].sort(descending=True).values[:16]
    assert [mistake[0] for mistake in mistakes(events)] == [f"{confidence:.0%}" for confidence in surest.tolist()]


@pytest.mark.slow
def test_no_figure_is_drawn_for_very_many_classes(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_pictures, "MAX_CLASSES", 2)
    run = train(*SMALL, "--max_epochs=1")
    assert "test/confusion matrix" not in shown(run.folder).Tags()["images"]
    assert (run.folder / "confusion_matrix.csv").exists()


def test_a_confusion_figure_names_its_classes_and_counts() -> None:
    figure = confusion_figure(torch.tensor([[5, 1], [0, 4]]), ["cat", "dog"])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "4", "5"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_labels_of_dollar_signs_are_drawn_as_they_are() -> None:
    labels = ["$", "$$", "$10_to_$20", "$x$"]
    figure = confusion_figure(torch.eye(4).long(), labels)
    figure.canvas.draw()
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        assert drawn(axis.get_ticklabels()) == labels


@pytest.mark.parametrize(
    ("batch", "shape"), [(({"ids": torch.zeros(4, 2)}, torch.zeros(4)), (4,)), ((torch.zeros(4, 2), {}), (4, 5))]
)
def test_mistakes_without_a_single_input_are_not_listed(batch: Any, shape: tuple[int, ...]) -> None:
    pictures, targets = EvaluationPictures(), torch.zeros(shape, dtype=torch.int64)
    logits = torch.zeros(4, 3, *shape[1:])
    logits[:, 1] = 1
    pictures._curves = SimpleNamespace(update=lambda *_: None, ignore_index=-100, device="cpu")
    task: Any = SimpleNamespace(probabilities=lambda logits: logits.softmax(1))
    pictures.on_test_batch_end(None, task, {"logits": logits, "targets": targets}, batch, 0)  # type: ignore[arg-type]
    assert pictures._worst == []
    samples = TaskPictures()
    samples.on_test_start(None, task)  # type: ignore[arg-type]
    outputs = {"inputs": batch[0], "target": targets, "preds": targets}
    samples.on_test_batch_end(None, SimpleNamespace(figure_samples=3), outputs, batch)  # type: ignore[arg-type]
    assert len(samples._samples) == (3 if isinstance(batch[0], torch.Tensor) else 0)


def test_the_table_of_mistakes_keeps_its_rows_whatever_is_in_texts_and_labels() -> None:
    rows = _table([(0.9, 0, 1, torch.zeros(1))] * 2, ["yes|no", "b"], lambda _: "one\r\n\r\ntwo").split("\n")
    assert rows[2:] == ["| 90% | yes\\|no | b | one two |"] * 2
