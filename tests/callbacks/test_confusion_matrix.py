import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.errors import InputError
from tests.conftest import Run

Train = Callable[..., Run]
SHORT = ("--config=configs/language_id.yaml", "--max_epochs=1", "--model.net.d_model=16", "--model.net.num_layers=1")


def test_the_matrix_of_the_test_is_kept_under_its_labels(train: Train, tmp_path: Path) -> None:
    rows = [f"{'abc'[number % 3] * (1 + number % 7)},{'xyz'[number % 3]}" for number in range(90)]
    (tmp_path / "own.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    run = train(*SHORT, f"--data.path={tmp_path / 'own.csv'}", sample=False)
    with (run.folder / "confusion_matrix.csv").open() as file:
        header, *found = csv.reader(file)
    assert header[1:] == [row[0] for row in found] == ["x", "y", "z"]
    counts = torch.tensor([[int(count) for count in row[1:]] for row in found])
    assert counts.sum(dim=1).tolist() == [3, 3, 3]
    assert counts.diagonal().sum().item() / 9 == pytest.approx(run.metrics["test/acc"])
    text = EventAccumulator(str(run.folder)).Reload().Tensors("test/confusion/text_summary")[0]
    assert b"| x |" in text.tensor_proto.string_val[0]


def test_it_is_refused_where_nothing_is_classified(train: Train) -> None:
    with pytest.raises(InputError, match="ConfusionMatrix needs a classifier"):
        train(
            "--config=configs/shakespeare_gpt.yaml",
            "--trainer.callbacks+=ConfusionMatrix",
            "--fast_dev_run",
            sample=False,
        )
