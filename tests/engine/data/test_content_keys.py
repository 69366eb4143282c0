"""Files with the same content."""

from pathlib import Path

import pytest

from src.engine.data import labelled_files
from src.engine.data.labelled_files import content_keys


def test_files_with_the_same_content_have_the_same_key(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(5)]
    for path, content in zip(paths, (b"abc", b"abc", b"abd", b"longer", b"longer still"), strict=True):
        path.write_bytes(content)
    keys = content_keys(paths)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
    assert keys[3:] == [6, 12]  # not read, since no other file has their size


def test_files_that_differ_in_the_middle_are_not_read_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelled_files, "_whole", lambda file: pytest.fail(f"{file} read"))
    paths = [tmp_path / str(number) for number in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(10_000) + bytes([number]) * 1000 + bytes(10_000))
    assert len(set(content_keys(paths))) == 20
