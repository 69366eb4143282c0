"""A domain can be deleted, as the docs say: no other code or test names it, and the tests of the whole pass."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src import ROOT
from src.engine.new.template import Template
from tests.conftest import copy_of_the_repository, in_copy
from tests.test_repository import imports

# By what is deleted first; what builds on it goes with it.
LINES = re.findall(
    r"^(git rm .*?)(src/(\w+) .*)$",
    (ROOT / "docs" / "own_project.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)
FOLDERS = {domain: names.split() for _, names, domain in LINES}
# Deleted together: no other domain builds on these, so what needs one of them fails as it would without that one alone.
RUNS = (["vision"], ["text"], ["audio", "multimodal", "biology"])
# What a machine may lack; every other reason would be a missing domain.
MACHINE = (
    r"is not installed|no chromium|accelerator|GPU|FULL_DATA_DIR|g\+\+|cannot be mounted|started as root"
    r"|could not import '(?!src)|C library|glibc|from /proc|malloc|uv or .venv is missing"
)


def run_tests(copy: Path) -> int:
    """How many tests of what lies outside the domains pass; none may fail or lack what was deleted.

    All other tests are imported.
    """
    options = ("-m", "not slow", "-rs", "--disable-warnings", "-p", "no:cacheprovider", "-n0")
    files = [path.name for pattern in ("test_*.py", "engine/new/test_*.py") for path in (copy / "tests").glob(pattern)]
    said = in_copy(copy, "-m", "pytest", *options, "-k", " or ".join(files))
    assert skipped_for_a_domain(said) == []
    return int(re.findall(r"(\d+) passed", said)[-1])


def names_of(domain: str) -> re.Pattern[str]:
    """Finds names of what is deleted with a domain: its modules, files and classes."""
    template = Template(ROOT)
    gone = [path for path in template.source if path.startswith(tuple(f"{name}/" for name in FOLDERS[domain]))]
    classes = {name for name, path in template.classes.items() if path in gone}
    stems = {Path(path).stem for path in gone if path.endswith(".yaml")}
    recipes = {stem if "_" in stem else rf"{stem}\.yaml" for stem in stems}  # others are words, such as three
    folders = {f"{Path(name).parts[0]}[./]{Path(name).parts[1]}" for name in FOLDERS[domain]}
    return re.compile(rf"\b({'|'.join(sorted(recipes | folders))})\b|=({'|'.join(sorted(classes))})\b")


def skipped_for_a_domain(said: str) -> list[str]:
    """The reasons for skipping in a summary of pytest that are not the machine's."""
    reasons = re.findall(r"^SKIPPED \[\d+\] \S+ (.*)$", said, re.MULTILINE)
    return [reason for reason in reasons if not re.search(MACHINE, reason)]


def test_a_test_that_skips_for_a_missing_domain_is_seen() -> None:
    lines = (
        "SKIPPED [1] tests/test_readme.py:242: could not import 'argcomplete': No module named 'argcomplete'",
        "SKIPPED [1] tests/test_x.py:3: could not import 'src.text': No module named 'src.text'",
        "SKIPPED [2] tests/test_y.py: there is no text here",
    )
    found = skipped_for_a_domain("\n".join(lines))
    assert found == ["could not import 'src.text': No module named 'src.text'", "there is no text here"]


def test_the_guide_says_how_to_delete_each_domain() -> None:
    built_on = {"vision": {"multimodal", "audio"}, "text": {"multimodal", "biology"}, "audio": {"multimodal"}}
    built_on |= {"multimodal": set(), "biology": set()}
    assert FOLDERS.keys() == built_on.keys()
    for domain, names in FOLDERS.items():
        gone = {domain, *built_on[domain]}
        assert set(names) == {f"{folder}/{name}" for folder in ("src", "configs", "tests") for name in gone}
    assert sorted(domain for domains in RUNS for domain in domains) == sorted(FOLDERS)


def test_the_lines_of_the_guide_can_be_run_one_after_the_other(tmp_path: Path) -> None:
    for name in ("src/engine", *(name for names in FOLDERS.values() for name in names)):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "a.py").touch()
    commit = "git -c user.name=a -c user.email=a commit --quiet --message=a"
    lines = (f"{command}{names}" for command, names, _ in LINES)
    for command in ("git init --quiet", "git add .", commit, *lines):
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py")] == ["src/engine/a.py"]


def test_other_tests_cannot_know_that_a_domain_is_gone() -> None:
    for domain in (domain for domain, names in FOLDERS.items() if all((ROOT / name).is_dir() for name in names)):
        names = names_of(domain)
        module = "SequenceDataModule" if domain == "biology" else "CaptionDataModule"
        assert all(map(names.search, (f"src.{domain}.a", f"configs/{domain}/a.yaml", f"--data={module}")))
        gone = tuple(ROOT / name for name in FOLDERS[domain])
        for path in (ROOT / "tests").glob("*/**/*.py"):
            if not any(path.is_relative_to(folder) for folder in gone) and "new" not in path.parts:
                assert not (found := names.search(path.read_text(encoding="utf-8"))), f"{path}: {found}"


@pytest.mark.slow
def test_no_module_that_stays_imports_one_that_goes() -> None:
    for names in FOLDERS.values():
        gone = tuple(f"{name.replace('/', '.')}." for name in names if name.startswith("src/"))
        left = {one: found for one, found in imports().items() if not f"{one}.".startswith(gone)}
        assert [(one, name) for one, found in left.items() for name in found if f"{name}.".startswith(gone)] == []


@pytest.mark.slow
@pytest.mark.parametrize("domains", RUNS, ids="+".join)
def test_without_a_domain_the_tests_that_see_all_of_the_repository_pass(domains: list[str], tmp_path: Path) -> None:
    copy = copy_of_the_repository(tmp_path / "copy", compiled=True)
    for name in (name for domain in domains for name in FOLDERS[domain]):
        shutil.rmtree(copy / name, ignore_errors=True)  # may be gone already
    lint = [sys.executable, "-m", "ruff", "check", "--no-cache", "--quiet"]
    assert subprocess.run(lint, cwd=copy, capture_output=True, text=True, check=False).stdout == ""
    assert run_tests(copy) > 100
