"""The figures of the README, on the full data and run after run."""

import statistics
from collections.abc import Callable

import pytest

from tests.conftest import Run


@pytest.mark.slow
def test_the_default_recipe_reaches_its_accuracy_on_the_full_mnist(train: Callable[..., Run], full_data: str) -> None:
    # One seed; docs/figures.md has five.
    run = train("--seed_everything=1", f"--data.data_dir={full_data}", sample=False)
    assert run.metrics["data_source"] == "official"
    assert run.metrics["test/acc"] >= 0.994


@pytest.mark.slow
def test_the_fast_recipe_reaches_99_percent_on_the_full_mnist(train: Callable[..., Run], full_data: str) -> None:
    words = ("--config=configs/vision/mnist_fast.yaml", "--data.source=official", f"--data.data_dir={full_data}")
    runs = [train(*words, f"--seed_everything={seed}", sample=False) for seed in (1, 2, 3, 4, 5)]
    accuracies = [run.metrics["test/acc"] for run in runs]
    print(accuracies)
    assert statistics.mean(accuracies) >= 0.99


@pytest.mark.slow
def test_the_accurate_recipe_learns_in_three_of_its_epochs(train: Callable[..., Run], full_data: str) -> None:
    # All twenty take too long for a test, and the test digits are left alone.
    words = ("--config=configs/vision/mnist_best.yaml", "--data.source=official", f"--data.data_dir={full_data}")
    run = train("fit", *words, "--max_epochs=3", sample=False)
    print(run.metrics)
    assert run.metrics["val/acc"] >= 0.985


@pytest.mark.slow
def test_the_default_recipe_learns_the_sample(train: Callable[..., Run]) -> None:
    assert train().metrics["test/acc"] > 0.94


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "most"), [("shakespeare_gpt", 1.60), ("shakespeare_gpt_fast", 1.88)])
def test_the_language_models_reach_their_held_out_loss(
    train: Callable[..., Run], full_data: str, recipe: str, most: float
) -> None:
    words = (f"--config=configs/{recipe}.yaml", "--data.source=tiny_shakespeare", f"--data.data_dir={full_data}")
    run = train(*words, "--data.final=true", sample=False)
    print(run.metrics)
    assert run.metrics["test/loss"] <= most


@pytest.mark.slow
def test_the_languages_of_names_are_told_apart(train: Callable[..., Run]) -> None:
    run = train("--config=configs/text/language_id.yaml", sample=False)
    assert run.metrics["data_source"] == "language_names"
    assert run.metrics["test/acc"] >= 0.85
    assert (run.folder / "confusion_matrix.csv").exists()


@pytest.mark.slow
def test_sentiment_is_learned_from_scratch(train: Callable[..., Run], full_data: str) -> None:
    accuracies = []
    for seed in (1, 2, 3):
        words = (
            "--config=configs/text/sentiment_transformer.yaml",
            "--data.source=rt_polarity",
            f"--seed_everything={seed}",
        )
        accuracies.append(train(*words, f"--data.data_dir={full_data}", sample=False).metrics["test/acc"])
    print(accuracies)
    assert statistics.mean(accuracies) >= 0.76


@pytest.mark.slow
def test_a_pretrained_model_is_fine_tuned(train: Callable[..., Run], full_data: str) -> None:
    words = (
        "--config=configs/text/sentiment_pretrained.yaml",
        "--data.source=rt_polarity",
        f"--data.data_dir={full_data}",
    )
    run = train(
        "fit", *words, "--seed_everything=1", "--max_epochs=1", "--trainer.limit_train_batches=0.5", sample=False
    )
    # A sixth of its steps, on the validation part: enough to see that it learns, and the test part is left alone.
    print(run.metrics)
    assert run.metrics["val/acc"] >= 0.79
