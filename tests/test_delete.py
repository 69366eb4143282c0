"""The rooms are separate: what docs/delete.md lists can be deleted, and the rest works."""

import re
import shutil
from pathlib import Path

import pytest

from src import ROOT
from tests.conftest import DELETED, copy_of_the_repository, in_copy

PAGE = ROOT / "docs" / "delete.md"


def parts() -> dict[str, list[str]]:
    """Files by the part they belong to."""
    cells = [
        line.strip("|").split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")
    ]
    return {name.strip(): re.findall("`([^`]+)`", files) for name, files, _ in cells[2:]}


@pytest.mark.skipif(bool(DELETED), reason="some have been deleted")
def test_every_file_that_may_be_deleted_is_there() -> None:
    for part, files in parts().items():
        assert files
        for name in files:
            assert (ROOT / name).exists(), (part, name)


def delete(copy: Path, *names: str) -> None:
    for part in names:
        for name in parts()[part]:
            path = copy / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)  # some parts take the README's test with them


@pytest.mark.slow
def test_without_the_other_parts_nothing_is_missed_by_an_import(tmp_path: Path) -> None:
    copy = copy_of_the_repository(tmp_path / "copy")
    others = list(parts())[4:]
    assert "search" in others
    delete(copy, "CLIP", *others)
    in_copy(copy, "-m", "mypy")
    in_copy(copy, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider")


@pytest.mark.slow
@pytest.mark.parametrize("half", ["text", "images"])
def test_without_one_half_the_remaining_tests_pass(half: str, tmp_path: Path) -> None:
    copy = copy_of_the_repository(tmp_path / "copy")
    delete(copy, "CLIP", "benchmarks", half)
    if half == "images":  # which the page says too
        shutil.copy(copy / "configs" / "language_id.yaml", copy / "configs" / "default.yaml")
    in_copy(copy, "-m", "mypy")
    tested = in_copy(copy, "-m", "pytest", "-m", "not slow", "--disable-warnings", "-p", "no:cacheprovider")
    assert int(re.findall(r"(\d+) passed", tested)[-1]) > 200
