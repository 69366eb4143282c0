"""Each recipe for texts learns: a few steps on a little data are far better than chance."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Run, write

Train = Callable[..., Run]
GOOD, BAD = ("fine", "moving", "bright", "witty"), ("dull", "awful", "flat", "tired")
THEMES = ("love", "war", "crime", "music", "money")
# Muon multiplies matrices in bfloat16, which takes a CPU without it a second a step at the width of the recipes.
SMALL = ("--model.net.d_model=64",)


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    """A table of short film reviews, the praise of each in two words."""
    rows = ["text,label"]
    for label, words in (("good", GOOD), ("bad", BAD)):
        for theme, first, second in itertools.product(THEMES, words, words):
            rows.append(f"a {first} film about {theme} with a {second} ending,{label}")
    return write(tmp_path / "reviews.csv", "\n".join(rows) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shakespeare_gpt", "shakespeare_gpt_fast"])
def test_the_language_models_learn_more_than_how_frequent_letters_are(train: Train, name: str) -> None:
    data = ("--data.source=python_reference", "--data.block_size=64", "--trainer.limit_val_batches=2")
    steps = ("--trainer.max_steps=40", "--trainer.val_check_interval=40")
    run = train("fit", f"--config=configs/text/{name}.yaml", *SMALL, "--model.net.num_layers=2", *data, *steps)
    assert run.metrics["val/loss"] < 3.0  # nats; chance: 5.5, the frequencies of letters: 3.2


@pytest.mark.slow
def test_the_languages_of_names_are_told_apart(train: Train) -> None:
    short = ("--data.max_length=32", "--trainer.limit_train_batches=100", "--trainer.limit_val_batches=4")
    words = (*SMALL, "--model.net.num_layers=1", *short, "--max_epochs=1")
    run = train("fit", "--config=configs/text/language_id.yaml", *words)
    assert run.metrics["data_source"] == "language_names"
    assert run.metrics["val/acc"] > 0.1  # chance: 0.03


@pytest.mark.slow
def test_sentiment_is_learned_from_scratch(train: Train, reviews: str) -> None:
    data = (f"--data.path={reviews}", "--data.batch_size=32")
    run = train("fit", "--config=configs/text/sentiment_transformer.yaml", *data, "--max_epochs=5")
    assert run.metrics["val/acc"] > 0.8  # chance: 0.5


@pytest.mark.slow
def test_a_pretrained_model_is_fine_tuned_to_sentiment(train: Train, reviews: str) -> None:
    data = (f"--data.path={reviews}", "--data.max_length=16", "--data.batch_size=16")
    run = train("fit", "--config=configs/text/sentiment_pretrained.yaml", *data, "--max_epochs=1")
    assert run.metrics["val/acc"] > 0.8  # chance: 0.5
