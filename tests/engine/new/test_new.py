"""Each kind, recipe and command alone makes a project that starts and refers to nothing that is not there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from src import ROOT
from src.engine.new.project import kinds, recipes
from src.engine.new.template import Template
from tests.engine.new.dangling import dangling
from tests.engine.new.projects import environment, make, run

KINDS = [("--kind", kind) for kind in kinds(ROOT)]
RECIPES = [("--recipe", recipe) for recipe in recipes(Template(ROOT))]
COMMANDS = [
    (*start, "--with", command)
    for start in (("--kind", "classification"), ("--recipe", "shakespeare_gpt"))
    for command in ("train", "predict", "export", "serve", "tune", "generate", "fsdp2,clusters,compile")
]
MORE = [("--kind", "regression", "--package", "tumours"), ("--recipe", "mnist_fast", "--recipe", "language_id")]


@pytest.mark.parametrize("words", [*KINDS, *RECIPES, *COMMANDS, *MORE], ids=" ".join)
def test_a_project_has_all_that_it_refers_to_and_starts(words: tuple[str, ...], tmp_path: Path) -> None:
    project = make(tmp_path / "mine", *words)
    package = words[words.index("--package") + 1] if "--package" in words else "src"
    assert dangling(project, package) == []
    ruff = (sys.executable, "-m", "ruff")
    for command in ((*ruff, "check", "--no-cache"), (*ruff, "format", "--check", "--no-cache")):
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    for path in project.rglob("*.py"):
        compile(path.read_text(), path, "exec")
    assert len((project / "README.md").read_text().splitlines()) <= 80
    printed = run(project, f"{package}.train", "--print_config", "--accelerator=cpu").stdout
    assert re.search(r"^model:\n  class_path: ", printed, re.MULTILINE), printed[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("words", [*KINDS, *RECIPES], ids=" ".join)
def test_the_tests_of_a_project_pass(words: tuple[str, ...], tmp_path: Path) -> None:
    project = make(tmp_path / "mine", *words)
    done = run(project, "pytest", "-n0", "-q", "-rs", "-m", "not slow", "--ignore=tests/engine", "--ignore=tests/tasks")
    assert done.returncode == 0, done.stdout[-4000:]
    skipped = re.findall(r"^SKIPPED .*", done.stdout, re.MULTILINE)
    assert not [line for line in skipped if not re.search("accelerator|GPU|FULL_DATA_DIR|Linux|glibc", line)]


@pytest.mark.slow
def test_a_project_works_with_make(tmp_path: Path) -> None:
    project = make(tmp_path / "mine", "--kind", "classification", "--with", "train")
    environment(project)
    for words in (("train", "ARGS=--accelerator cpu"), ("test",), ("lint",)):
        done = subprocess.run(["make", *words], cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
