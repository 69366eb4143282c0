"""Memory for decoded images."""

import sys
from pathlib import Path

import pytest

from src.engine.data import image_cache
from src.engine.data.image_cache import available_memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_memory_is_no_more_than_a_container_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(image_cache, "CONTAINER_MEMORY", ((str(limit), str(used)),))
    whole = available_memory()
    used.write_text("300\n")
    for text, expected in (("1000\n", 700), ("200\n", 0)):
        limit.write_text(text)
        assert available_memory() == expected
    limit.write_text("max\n")
    assert available_memory() > whole / 2 > 0
