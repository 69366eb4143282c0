"""What `src.new` writes, lists and refuses."""

import argparse
import os
import pty
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from src import ROOT
from src.engine.new import creating
from src.engine.new import template as template_module
from src.engine.new.creating import _ask, new
from src.engine.new.project import Choice, Project, kinds
from src.engine.new.template import Template, commit_of, git
from src.engine.system.errors import InputError
from tests.conftest import copy_of_the_repository
from tests.engine.new.projects import DOMAIN, OTHER, RECIPES, make

TEMPLATE = Template(ROOT)
FIRST = next(iter(RECIPES))
OTHERS = [name for name in RECIPES if name != "default"]


def table(project: Path) -> dict[str, Any]:
    return tomllib.loads((project / "pyproject.toml").read_text())


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_it_is_a_repository_with_one_commit_and_nothing_uncommitted(tmp_path: Path) -> None:
    project = make(tmp_path / "tumours", "--kind", "classification", "--with", "train")
    assert git(project, "rev-list", "--count", "HEAD").stdout.strip() == "1"
    assert git(project, "status", "--porcelain").stdout == ""
    assert left_in(tmp_path) == ["tumours"]
    noted = table(project)["tool"]["lightning-starter"]
    assert noted["commit"] == commit_of(ROOT)
    assert (noted["kind"], noted["with"]) == ("classification", [])


@pytest.mark.slow
def test_name_author_and_license_are_the_users(tmp_path: Path) -> None:
    words = ("--kind", "regression", "--name", "house_prices", "--author", 'Ada: "Lovelace"', "--license", "Apache-2.0")
    project = make(tmp_path / "houses", *words)
    assert table(project)["project"]["name"] == "house_prices"
    assert table(project)["project"]["license"] == "Apache-2.0"
    assert 'Ada: "Lovelace"' in (project / "LICENSE").read_text()
    citation = yaml.safe_load((project / "CITATION.cff").read_text())
    assert citation["authors"] == [{"name": 'Ada: "Lovelace"'}]
    # The licence of the engine asks for its notice.
    assert "lightning-starter authors" in (project / "LICENSE-lightning-starter").read_text()
    assert "class HousePricesNet(nn.Module)" in (project / "src" / "house_prices" / "network.py").read_text()
    assert "{{" not in (project / "README.md").read_text()


@pytest.mark.slow
def test_the_name_of_a_domain_is_free_where_the_project_has_none(tmp_path: Path) -> None:
    project = make(tmp_path / DOMAIN, "--kind", "regression")
    assert (project / "src" / DOMAIN / "network.py").is_file()


def test_texts_that_come_along_keep_their_words(tmp_path: Path) -> None:
    project = make(tmp_path / "mine", "--kind", "regression", "--license", "Apache-2.0", "--author", "Ada")
    whole = (ROOT / "templates" / "licenses" / "Apache-2.0").read_text()
    expected = whole.replace("{{author}}", "Ada").replace("{{year}}", time.strftime("%Y"))
    assert (project / "LICENSE").read_text() == expected
    assert "for example: make train" in (project / "Makefile").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_needs_is_installed_before_it_trains(recipe: str) -> None:
    files = Project(ROOT, Choice("mine", recipes=[recipe])).files()
    extras = tomllib.loads(files["pyproject.toml"].decode())["project"]["optional-dependencies"].keys()
    installed = re.findall(r"--editable '\.(?:\[(\w+(?:,\w+)*)\])?'\n", files["Makefile"].decode())[0]
    assert {*installed.split(",")} - {""} == extras - {"deploy", "tune", "loggers", "dev"}


def test_the_page_of_the_service_is_packed() -> None:
    files = Project(ROOT, Choice("mine", "classification", parts=["serve"], package="mine")).files()
    packed = tomllib.loads(files["pyproject.toml"].decode())["tool"]["setuptools"]["package-data"]["mine"]
    pages = [path for path in files if path.startswith("mine/") and not path.endswith(".py")]
    assert "mine/engine/deploy/page.html" in pages
    assert all(any(PurePosixPath(path).match(pattern) for pattern in packed) for path in pages)
    assert files["mine/engine/deploy/page.html"].decode() == (ROOT / "src/engine/deploy/page.html").read_text()


def test_a_new_project_needs_ruff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = creating.importlib.util.find_spec
    monkeypatch.setattr(creating.importlib.util, "find_spec", lambda name: None if name == "ruff" else find(name))
    with pytest.raises(
        InputError, match=r"^src\.new needs the package ruff: install it with pip install -e '\.\[dev\]'"
    ):
        make(tmp_path / "mine", "--kind", "regression")


@pytest.mark.slow
def test_a_package_of_ones_own_is_named_everywhere(tmp_path: Path) -> None:
    project = make(tmp_path / "tumours", "--kind", "classification", "--package", "tumours")
    assert not (project / "src").exists()
    assert (project / "tumours" / "train.py").is_file()
    assert "@$(BIN)/python -m tumours.train $(ARGS)" in (project / "Makefile").read_text()
    for path in project.rglob("*.py"):
        assert "from src" not in path.read_text(), path


@pytest.mark.parametrize("kind", [*kinds(ROOT)])
def test_a_kind_has_at_most_150_lines_of_its_own(kind: str, tmp_path: Path) -> None:
    project = make(tmp_path / "mine", "--kind", kind)
    files = [path for path in (project / "src" / "mine").iterdir() if path.is_file()]
    assert sum(len(path.read_text().splitlines()) for path in files) <= 150


@pytest.mark.slow
def test_only_what_is_chosen_comes_along(tmp_path: Path) -> None:
    least = make(tmp_path / "least", "--kind", "regression", "--with", "train")
    usual = make(tmp_path / "usual", "--kind", "regression")
    for name in ("predict.py", "engine/deploy", "engine/parts/compile.py", "tasks/classifier.py", "text", "vision"):
        assert not (least / "src" / name).exists()
    assert (usual / "src" / "predict.py").is_file()
    packages = [one.partition(">")[0] for one in table(least)["project"]["dependencies"]]
    assert not {"torchvision", "tokenizers", "pyarrow"} & {*packages}
    assert table(least)["project"]["optional-dependencies"].keys() == {"dev"}


@pytest.mark.slow
def test_a_recipe_is_the_default_recipe_of_its_project(tmp_path: Path) -> None:
    first, second = ((name, RECIPES[name]) for name in OTHERS[:2])
    project = make(tmp_path / "mine", "--recipe", first[0], "--recipe", second[0], "--with", "train")
    recipe = (project / first[1]).read_text()
    assert (project / "configs" / "default.yaml").read_text() == recipe
    assert (project / second[1]).is_file()
    named = [TEMPLATE.classes[name] for name in re.findall(r"class_path: (\w+)", recipe) if name in TEMPLATE.classes]
    assert named
    assert all((project / path).is_file() for path in named)
    assert not (project / "src" / "text" / "language_model.py").exists()  # neither recipe uses it
    assert (project / "tests" / DOMAIN).is_dir()
    there = {path.stem for path in (project / "configs").rglob("*.yaml")}
    assert there & {*RECIPES, "default"} == {first[0], second[0], "default"}


def test_a_copy_without_history_has_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gitconfig").write_text(f"[core]\n\texcludesFile = {tmp_path / 'everywhere'}\n")
    (tmp_path / "everywhere").write_text("data/\n")  # what the user ignores in all repositories
    monkeypatch.setenv("HOME", str(tmp_path))
    copy = Template(copy_of_the_repository(tmp_path / "copy"))
    for folder in ("src/", "configs/", "tests/"):
        code = [{path for path in one.source if path.startswith(folder)} for one in (TEMPLATE, copy)]
        assert code[0] == code[1] != set()


@pytest.mark.slow
def test_a_dry_run_lists_the_files_with_their_lines_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new([str(tmp_path / "mine"), "--kind", "lightning", "--dry-run"])
    said = capsys.readouterr().out.splitlines()
    lines = len((ROOT / "templates/kinds/lightning/src/example/module.py").read_text().splitlines())
    assert f"{lines:6}  src/mine/module.py" in said
    assert any(line.endswith("lines in src") for line in said)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "mine",
            rf"mine: nothing is chosen for this project: give --kind classification or .* --recipe with one of {FIRST}",
        ),
        ("there --kind lightning", "folder there already exists: give another name"),
        ("link --kind lightning", "folder link already exists: give another name"),
        ("no/where --kind lightning", "there is no folder .*no; make it first"),
        ("mine --kind lightnin", "--kind lightnin: no such kind, did you mean lightning?"),
        (f"mine --recipe {OTHER}s", f"--recipe {OTHER}s: no such recipe, did you mean {OTHER}"),
        ("mine --kind lightning --with predcit", "--with predcit: no such command or part, did you mean predict?"),
        ("mine --kind lightning --license GPL", "--license GPL: no such license; known: Apache-2.0, BSD-3-Clause, MIT"),
        ("my-gpt --kind lightning", "my-gpt: the name my-gpt is not the name of a module"),
        ("mine --kind lightning --name class", "--name class is not the name of a module"),
        ("mine --kind lightning --name Mine", "--name Mine is not the name of a module"),
        ("mine --kind lightning --name engine", "--name engine is already used in the project"),
        (f"mine --kind lightning --recipe {OTHER} --name {DOMAIN}", f"--name {DOMAIN} is already used in the"),
        ("predict --kind regression", "--name predict is already used in the project"),
        ("mine --kind lightning --name recipes", "--name recipes is already used in the project"),
        ("mine --kind lightning --package json", "--package json: an installed package has that name"),
        ("mine --kind lightning --package data", "--package data is already used in the project"),
        ("mine --kind lightning --name torch", "--name torch: a package that the project may need has that name"),
        ("mine --kind lightning --name _mine", "--name _mine is not the name of a module"),
        ("mine --kind lightning --name mine_", "--name mine_ is not the name of a module"),
        ("--update there --dry-run", "--update takes --with and --recipe only, was given dry_run too"),
        ("mine --update there --with serve", "--update takes --with and --recipe only, was given folder too"),
        ("mine --kind lightning --package tests", "--package tests is already used in the project"),
        ("mine --kin lightning", "--kin: no such option, did you mean --kind?"),
        ("", "the folder is missing"),
    ],
)
def test_what_cannot_be_made_is_one_line_and_leaves_nothing(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(InputError, match=message):
        new(words.split())
    assert left_in(tmp_path) == ["link", "there"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("", "git is not installed"),
        ("echo 'fatal: detected dubious ownership' >&2; exit 128", "fatal: detected dubious ownership"),
    ],
)
def test_without_a_git_that_works_one_line_says_so(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script:
        (tmp_path / "git").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    template_module._listed.cache_clear()
    try:
        with pytest.raises(InputError, match=message):
            make(tmp_path / "mine", "--kind", "lightning")
    finally:
        template_module._listed.cache_clear()
    assert not (tmp_path / "mine").exists()


@pytest.mark.slow
def test_a_file_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    copy = copy_of_the_repository(tmp_path / "copy")
    for name in ("tests/photo.png", "tests/.DS_Store", "templates/base/.DS_Store", "tests/notes.txt"):
        (copy / name).write_bytes(b"\xff\x00")
    files = Project(copy, Choice("mine", "regression")).files()
    assert not [path for path in files if path.endswith((".png", ".DS_Store", "notes.txt"))]


@pytest.mark.slow
def test_what_an_update_cannot_know_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copy_of_the_repository(tmp_path / "copy")
    assert "has no history of git" in template_module.uncommitted(copy)
    git(copy, "init", "--quiet")
    git(copy, "add", "README.md")
    creating.commit(copy, "First", "Ada")
    assert "has changes that are not committed" in template_module.uncommitted(copy)
    git(copy, "add", "--all")
    creating.commit(copy, "All", "Ada")
    assert template_module.uncommitted(copy) == ""
    monkeypatch.setattr(creating, "uncommitted", lambda _: "" if (tmp_path / "mine").exists() else "a reason")
    make(tmp_path / "mine", "--kind", "lightning")
    assert "this project cannot take updates: a reason" in capsys.readouterr().err


def test_a_short_package_keeps_the_length_of_lines() -> None:
    table = Project(ROOT, Choice("mine", "lightning", package="ml")).files()["pyproject.toml"].decode()
    assert tomllib.loads(table)["tool"]["ruff"]["lint"]["pycodestyle"] == {"max-line-length": 120}


@pytest.mark.slow
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_halfway_leaves_nothing(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(creating, "commit", fail)
    with pytest.raises((InputError, KeyboardInterrupt), match=r"cannot be written: No space left|^$"):
        new([str(tmp_path / "mine"), "--kind", "lightning"])
    assert left_in(tmp_path) == []


def test_a_folder_made_meanwhile_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = creating.commit

    def commit_late(folder: Path, message: str, author: str) -> None:
        commit(folder, message, author)
        (tmp_path / "mine").mkdir()

    monkeypatch.setattr(creating, "commit", commit_late)
    with pytest.raises(InputError, match="cannot be written: it exists"):
        new([str(tmp_path / "mine"), "--kind", "lightning"])
    assert left_in(tmp_path) == ["mine"]


@pytest.mark.slow
def test_the_first_commit_needs_no_identity_hooks_or_keys_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    hook = tmp_path / "hooks" / "pre-commit"
    hook.parent.mkdir()
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    config.write_text(f"[commit]\n\tgpgsign = true\n[core]\n\thooksPath = {hook.parent}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "git").mkdir()
    config.rename(tmp_path / "git" / "config")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # of a hook that runs this
    project = make(tmp_path / "mine", "--kind", "lightning", "--author", "Ada")
    assert git(project, "log", "--format=%s").stdout == "New project from lightning-starter\n"


def test_a_folder_that_cannot_be_made_is_refused_after_the_first_question(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer, message in (("../my-project", "the name my-project is not"), (str(ROOT), "exists"), ("", "no folder")):
        answers = iter([answer])
        monkeypatch.setattr("builtins.input", lambda _, answers=answers: next(answers))
        with pytest.raises(InputError, match=message):
            _ask(argparse.Namespace())


def test_packages_that_a_project_needs_have_the_names_under_which_they_are_installed() -> None:
    project = Project(ROOT, Choice("mine", kind="regression", parts=["serve", "tune"]))
    assert {"python-multipart", "scikit-learn", "torch"} <= project.requirements()


@pytest.mark.slow
def test_without_arguments_a_terminal_is_asked_three_questions(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "src.new"]
    environment = {**os.environ, "REAL_INTERPRETER": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = ""
    for question, answer in (("Folder", str(tmp_path / "mine")), ("Number: ", "1"), ("or Enter", "predict")):
        end = time.monotonic() + 60
        while question not in said:
            assert time.monotonic() < end
            said += os.read(ours, 100_000).decode()
        shown, said = said, ""
        os.write(ours, f"{answer}\n".encode())
    assert process.wait(60) == 0
    os.close(ours)
    assert "lines  predict (needs" in shown
    assert table(tmp_path / "mine")["tool"]["lightning-starter"]["with"] == ["predict"]


def test_a_service_requires_all_packages_that_it_asks_for(tmp_path: Path) -> None:
    project = make(tmp_path / "mine", "--kind", "classification", "--with", "predict", "--with", "serve")
    assert table(project)["tool"]["lightning-starter"]["with"] == ["predict", "serve"]
    extra = " ".join(table(project)["project"]["optional-dependencies"]["deploy"]).replace("-", "_")
    asked = re.findall(
        r'require\("src.serve", "deploy", (.*)\)', (project / "src/engine/deploy/serving.py").read_text()
    )
    packages = re.findall(r'"(\w+)"', asked[0])
    assert "python_multipart" in packages
    assert [one for one in packages if one not in extra] == ["httptools"]  # of uvicorn[standard]


def test_all_files_are_committed_whatever_git_ignores_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ignored").write_text("data/\n.vscode/\n")
    (tmp_path / ".gitconfig").write_text(f"[core]\n  excludesFile = {tmp_path / 'ignored'}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    project = make(tmp_path / "mine", "--kind", "regression", "--with", "train")
    listed = git(project, "ls-files").stdout.splitlines()
    assert "src/engine/data/loading.py" in listed
    assert ".vscode/settings.json" in listed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brain", "breast_cancer_histology_grading"])
def test_a_project_of_any_name_is_formatted(name: str, tmp_path: Path) -> None:
    project = make(tmp_path / name, "--kind", "regression")
    for words in (("check",), ("format", "--check")):
        ruff = [sys.executable, "-m", "ruff", *words, "--no-cache", "."]
        done = subprocess.run(ruff, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
