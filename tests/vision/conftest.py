"""Fixtures of the tests of images."""

from pathlib import Path

import pytest

from tests.conftest import fit, once

SMALL = ("--model.net=CNN", "--model.net.width=8", "--model.net.hidden=32", "--data.source=sample")


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """The default recipe on the sample that a package carries."""
    return ("--data.source=sample",)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that knows digits fairly well, after seconds."""

    def make(folder: Path) -> str:
        return fit(folder, *SMALL, "--max_epochs=6")

    return once(tmp_path_factory, "digits", make)
