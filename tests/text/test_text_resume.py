"""A run on texts that goes on is the run that nothing happened to, bit by bit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.engine.runs.stops import differences_after_stops

Train = Callable[..., Run]

WRITER = (
    "--config=configs/text/shakespeare_gpt_fast.yaml",
    "--model.net.d_model=16",
    "--model.net.num_heads=2",
    "--model.net.num_layers=2",
    "--model.net.dropout=0.2",
    "--data.block_size=16",
    "--data.batch_size=4",
    "--trainer.val_check_interval=10",
    "--trainer.max_steps=40",
    "--trainer.callbacks.max_new_tokens=3",
)
READER = (
    "--config=configs/text/language_id.yaml",
    "--model.net.d_model=8",
    "--model.net.num_heads=2",
    "--model.net.num_layers=1",
    "--data.batch_size=16",
    "--max_epochs=2",
)


@pytest.mark.slow
def test_a_language_model_that_is_stopped_goes_on_bit_by_bit(train: Train, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("it was the best of times, it was the worst of times\n" * 45)
    words = (*WRITER, f"--data.path={tmp_path / 'text.txt'}", f"--data.cache_dir={tmp_path}")
    assert differences_after_stops(train, tmp_path, words, (9, 10, 35)) == []  # it is validated every 10 steps


@pytest.mark.slow
def test_a_text_classifier_that_is_stopped_goes_on_bit_by_bit(train: Train, tmp_path: Path) -> None:
    rows = [f"{'abc'[number % 3] * (1 + number % 7)},{'xyz'[number % 3]}" for number in range(200)]
    (tmp_path / "own.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    words = (*READER, f"--data.path={tmp_path / 'own.csv'}")
    assert differences_after_stops(train, tmp_path, words, (5, 12)) == []
