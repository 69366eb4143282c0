"""Fixtures of the tests of the engine."""

import pytest

from tests import toy


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """A tiny network and data set of the tests' own."""
    return (f"--config={toy.RECIPE}",)
