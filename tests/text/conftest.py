"""Fixtures of the tests of texts."""

from pathlib import Path

import pytest

from tests.conftest import fit, once

WARNINGS = (
    "error:.past_key_values. is deprecated:FutureWarning",
    "error:fan_in_fan_out is set",
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",  # used by peft 0.21
)


def pytest_configure(config: pytest.Config) -> None:
    """Warnings of Hugging Face's libraries are errors if this project can avoid them."""
    for one in WARNINGS:
        config.addinivalue_line("filterwarnings", one)


@pytest.fixture(scope="session")
def sentiments(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that tells good from bad, in words of a small table."""

    def make(folder: Path) -> str:
        table = folder / "own.csv"
        rows = [
            f"{'a fine and good' if i % 2 else 'an awful and bad'} film number {i},{'good' if i % 2 else 'bad'}"
            for i in range(300)
        ]
        table.write_text("text,label\n" + "\n".join(rows) + "\n")
        small = ("--model.net.num_members=2", "--model.net.d_model=16", "--model.net.num_heads=2")
        words = ("--data.batch_size=32", "--max_epochs=5", f"--data.path={table}")
        return fit(folder, "--config=configs/text/sentiment_transformer.yaml", *small, *words)

    return once(tmp_path_factory, "sentiments", make)


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a small language model of bytes."""

    def make(folder: Path) -> str:
        (folder / "own.txt").write_text("To be, or not to be: that is the question. " * 40)
        words = (f"--data.path={folder / 'own.txt'}", f"--data.cache_dir={folder / 'cache'}", "--data.block_size=32")
        small = ("--model.net.d_model=16", "--model.net.num_heads=2", "--model.net.num_layers=1")
        steps = ("--trainer.max_steps=20", "--trainer.val_check_interval=20")
        return fit(folder, "--config=configs/text/shakespeare_gpt.yaml", *small, *steps, *words)

    return once(tmp_path_factory, "writer", make)
