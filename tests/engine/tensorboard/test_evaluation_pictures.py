import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from src.callbacks import evaluation_pictures
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchmetrics.functional.classification import multiclass_precision_recall_curve

from src.engine.tensorboard.evaluation_pictures import EvaluationPictures, confusion_figure
from tests.conftest import Run, fit

Train = Callable[..., Run]
SHORT = (
    "--config=configs/text/language_id.yaml",
    "--max_epochs=1",
    "--model.net.d_model=16",
    "--model.net.num_layers=1",
)
SMALL = ("--model.net=MLP", "--model.net.hidden=16", "--trainer.limit_train_batches=8")


def shown(run: Run) -> Any:
    return EventAccumulator(str(run.folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0}).Reload()


def test_texts_that_are_taken_for_others_are_listed_under_their_labels(train: Train, tmp_path: Path) -> None:
    rows = [f"{'abc'[number % 3] * (1 + number % 7)},{'xyz'[number % 3]}" for number in range(90)]
    (tmp_path / "own.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    run = train(*SHORT, f"--data.path={tmp_path / 'own.csv'}", sample=False)
    with (run.folder / "confusion_matrix.csv").open() as file:
        header, *found = csv.reader(file)
    assert header[1:] == [row[0] for row in found] == ["x", "y", "z"]
    counts = torch.tensor([[int(count) for count in row[1:]] for row in found])
    assert counts.sum(dim=1).tolist() == [3, 3, 3]
    assert counts.diagonal().sum().item() / 9 == pytest.approx(run.metrics["test/acc"])
    events = shown(run)
    assert "test/confusion matrix" in events.Tags()["images"]
    table = events.Tensors("test/worst mistakes/text_summary")[0].tensor_proto.string_val[0].decode()
    mistakes = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert len(mistakes) == 9 - counts.diagonal().sum()
    for _, true, taken, text in mistakes:
        assert text == "abc"["xyz".index(true)] * len(text)
        assert taken != true
    sure = [int(mistake[0].rstrip("%")) for mistake in mistakes]
    assert sure == sorted(sure, reverse=True)


def test_images_have_a_grid_of_mistakes_and_a_curve_for_each_class(train: Train) -> None:
    events = shown(train(*SMALL, "--max_epochs=1"))
    assert {"test/confusion matrix", "test/worst mistakes"} <= set(events.Tags()["images"])
    curves = [tag for tag in events.Tags()["tensors"] if tag.startswith("test/precision and recall/")]
    assert len(curves) == 10
    assert not any(tag.startswith("val/") for tag in events.Tags()["images"])


def test_they_are_drawn_after_every_second_epoch_where_that_is_asked_for(train: Train) -> None:
    words = ("--trainer.callbacks+=EvaluationPictures", "--trainer.callbacks.every_n_epochs=2")
    events = shown(train("fit", *SMALL, "--max_epochs=4", *words))
    assert [image.step for image in events.Images("val/confusion matrix")] == [16, 32]
    assert "test/confusion matrix" not in events.Tags()["images"]


def test_a_validation_draws_what_it_found(train: Train, tmp_path: Path) -> None:
    run = train("validate", "--ckpt_path", fit(tmp_path, "--data.source=sample", *SMALL, "--max_epochs=1"))
    assert "val/confusion matrix" in shown(run).Tags()["images"]


def test_a_model_that_is_no_classifier_is_left_alone(train: Train) -> None:
    words = ("--config=configs/text/shakespeare_gpt.yaml", "--model.net.d_model=16", "--model.net.num_heads=2")
    short = ("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1")
    run = train(*words, *short, "--data.block_size=16", "--trainer.limit_test_batches=1", sample=False)
    assert shown(run).Tags()["images"] == []
    assert not (run.folder / "confusion_matrix.csv").exists()


def test_a_curve_is_the_one_of_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(200, 3, generator=generator), torch.randint(3, (200,), generator=generator)
    written: dict[str, Any] = {}
    pictures = EvaluationPictures()
    task: Any = SimpleNamespace(num_classes=3, confusion=SimpleNamespace(ignore_index=-100), device="cpu")
    pictures._start(SimpleNamespace(fast_dev_run=False), task)  # type: ignore[arg-type]
    for part in range(4):
        rows = slice(50 * part, 50 * part + 50)
        pictures._look({"logits": logits[rows], "targets": targets[rows]}, (torch.zeros(50, 1, 2, 2), targets[rows]))
    from src.engine.tensorboard.evaluation_pictures import _add_curve

    def keep(tag: str, *columns: Any, **more: Any) -> None:
        written[tag] = columns

    _add_curve(SimpleNamespace(add_pr_curve_raw=keep), "1", pictures._curves.confmat[:, 1], 0)
    precision, recall, _ = multiclass_precision_recall_curve(logits.softmax(1), targets, 3, thresholds=101)
    assert torch.allclose(torch.tensor(written["1"][5]).float(), recall[1, :-1])
    some = recall[1, :-1] > 0  # where nothing is found, precision is a matter of taste
    assert torch.allclose(torch.tensor(written["1"][4]).float()[some], precision[1, :-1][some])
    confidences, preds = logits.softmax(1).max(1)
    assert [mistake[0] for mistake in pictures._worst] == pytest.approx(
        confidences[preds != targets].sort(descending=True).values[:16].tolist()
    )


def test_of_very_many_classes_no_figure_is_drawn(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_pictures, "MOST_CLASSES", 9)
    run = train(*SMALL, "--max_epochs=1")
    assert "test/confusion matrix" not in shown(run).Tags()["images"]
    assert (run.folder / "confusion_matrix.csv").exists()


def test_a_confusion_figure_names_its_classes_and_counts() -> None:
    figure = confusion_figure(torch.tensor([[5, 1], [0, 4]]), ["cat", "dog"])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog"]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "4", "5"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
