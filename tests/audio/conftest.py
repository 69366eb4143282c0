"""Fixtures of the tests of sounds."""

from pathlib import Path

import pytest

from tests.audio.helpers import TONES, own_sounds
from tests.conftest import fit, once


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that tells low from high tones."""
    return once(tmp_path_factory, "tones", lambda folder: trained(folder))


def trained(folder: Path) -> str:
    return fit(folder, *TONES, f"--data.path={own_sounds(folder / 'sounds')}", "--max_epochs=4")
