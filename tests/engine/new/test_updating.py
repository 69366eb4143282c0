"""`src.new --update` merges a newer template into a project, and loses nothing of it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.engine.new.creating import commit
from src.engine.new.template import git
from src.engine.new.updating import BUILT_IN, _merge, update
from src.engine.system.errors import InputError
from tests.conftest import copy_of_the_repository
from tests.engine.new.projects import DOMAIN, OTHER

ENGINE, SUMMARY = "src/engine/system/quiet.py", "src/engine/cli/summary.py"


def save(folder: Path, message: str = "A change") -> None:
    git(folder, "add", "--all")
    commit(folder, message, "Ada")


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the template and a project made of it, in one folder."""
    folder = tmp_path_factory.mktemp("made")
    template = copy_of_the_repository(folder / "template")
    git(template, "init", "--quiet", "--initial-branch=main")
    save(template, "The template")
    command = [sys.executable, "-m", "src.new", "../mine", "--kind", "regression", "--with", "train"]
    subprocess.run(command, cwd=template, check=True, env={"PATH": "/usr/bin:/bin"})
    return folder


@pytest.fixture
def both(made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the clone and of the project."""
    for name in ("template", "mine"):
        subprocess.run(["cp", "-r", made / name, tmp_path / name], check=True)
    return tmp_path / "template", tmp_path / "mine"


@pytest.mark.slow
def test_a_newer_engine_is_merged_and_changes_of_ones_own_stay(
    both: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    template, project = both
    replace(template / ENGINE, "def hide_information", "NEWER = True\n\n\ndef hide_information")
    replace(template / SUMMARY, '"""', '"""Newer. ')
    (template / "src/engine/system/added.py").write_text('"""New."""\n')
    replace(template / SUMMARY, "import shutil", "import shutil\n\nimport src.engine.system.added")
    replace(template / "templates/base/Makefile", "clean:  ## remove", "clean:  ## delete")
    replace(template / "templates/kinds/regression/src/example/network.py", "One hidden", "Another")
    save(template)
    (project / "src" / "mine" / "network.py").write_text("# mine\n")
    (project / ENGINE).write_text((project / ENGINE).read_text() + "\n\nMINE = True\n")
    replace(project / "README.md", "# mine", "# My own")
    replace(project / "pyproject.toml", '"torch>=2.14",', '"torch>=2.14",\n  "pandas>=2",')
    (project / "src" / "engine" / "cli" / "saved_config.py").unlink()
    save(project)
    assert update(template, project) == 0
    said = capsys.readouterr().out
    assert "conflict" not in said
    assert f"merged    {ENGINE}" in said
    assert "added     src/engine/system/added.py" in said
    text = (project / ENGINE).read_text()
    assert "NEWER = True" in text
    assert "MINE = True" in text
    assert (project / SUMMARY).read_text().startswith('"""Newer. ')
    assert (project / "src/engine/system/added.py").is_file()
    assert "clean:  ## delete" in (project / "Makefile").read_text()
    assert (project / "src" / "mine" / "network.py").read_text() == "# mine\n"
    assert (project / "README.md").read_text().startswith("# My own")
    assert not (project / "src" / "engine" / "cli" / "saved_config.py").exists()
    table = (project / "pyproject.toml").read_text()
    assert '"pandas>=2"' in table
    assert git(template, "rev-parse", "HEAD").stdout.strip() in table
    save(project)
    assert update(template, project) == 0
    assert capsys.readouterr().out.strip() == ""


@pytest.mark.slow
def test_what_was_in_all_projects_before_it_became_a_part_stays(both: tuple[Path, Path]) -> None:
    template, project = both
    noted = git(template, "rev-parse", "HEAD").stdout.strip()
    for file in BUILT_IN:
        (template / file).write_text('"""What parts do now."""\n')
    save(template)
    replace(project / "pyproject.toml", noted, git(template, "rev-parse", "HEAD").stdout.strip())
    save(project)
    for file in BUILT_IN:
        (template / file).unlink()
    save(template)
    assert update(template, project) == 0
    for name in (name for names in BUILT_IN.values() for name in names):
        assert (project / "src" / "engine" / "parts" / f"{name}.py").is_file()
        assert f'"{name}"' in (project / "pyproject.toml").read_text()
    save(project)
    replace(template / SUMMARY, '"""', '"""Newer. ')
    save(template)
    assert update(template, project) == 0
    assert (project / "src" / "engine" / "parts" / "monitors.py").is_file()


@pytest.mark.slow
def test_a_conflict_is_listed_and_both_versions_are_in_the_file(
    both: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    template, project = both
    old = "def hide_information() -> None:"
    replace(template / ENGINE, old, "def hide_information() -> None:  # theirs")
    (template / "src" / "engine" / "cli" / "saved_config.py").write_text('"""Nothing any more."""\n')
    save(template)
    replace(project / ENGINE, old, "def hide_information() -> None:  # mine")
    save(project)
    assert update(template, project) == 1
    assert f"conflict  {ENGINE}" in capsys.readouterr().out
    text = (project / ENGINE).read_text()
    for line in ("<<<<<<< yours", "# mine", "# theirs", ">>>>>>> template"):
        assert line in text


@pytest.mark.slow
def test_a_command_and_a_recipe_are_added_later(both: tuple[Path, Path]) -> None:
    _, project = both
    command = [sys.executable, "-m", "src.new", "--update", "../template", "--with", "serve", "--recipe", OTHER]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin"})
    assert done.returncode == 0, done.stderr
    assert (project / "src" / "serve.py").is_file()
    assert list(project.glob(f"configs/**/{OTHER}.yaml"))
    text = (project / "pyproject.toml").read_text()
    assert "starlette" in text
    assert '"serve"' in text
    assert f'"{OTHER}"' in text
    done = subprocess.run([*command[:-1], "no_such"], cwd=project, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_a_project_in_a_larger_repository_is_updated(both: tuple[Path, Path]) -> None:
    template, project = both
    shutil.rmtree(project / ".git")
    git(project.parent, "init", "--quiet", "--initial-branch=main")
    (project.parent / ".gitignore").write_text("template\n")
    save(project.parent)
    (project.parent / "other").mkdir()
    (project.parent / "other" / "unsaved.txt").write_text("of a colleague\n")
    replace(template / SUMMARY, '"""', '"""Newer. ')
    save(template)
    assert update(template, project) == 0
    assert (project / SUMMARY).read_text().startswith('"""Newer. ')
    shutil.move(project / "src", project / "tumours")
    save(project)
    with pytest.raises(InputError, match="has no folder src/engine; if you have renamed the package"):
        update(template, project)


@pytest.mark.slow
def test_the_command_of_the_project_asks_the_clone(both: tuple[Path, Path]) -> None:
    template, project = both
    replace(template / SUMMARY, '"""', '"""Newer. ')
    save(template)
    command = [sys.executable, "-m", "src.new", "--update", "../template"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin"})
    assert done.returncode == 0, done.stderr
    assert f"merged    {SUMMARY}" in done.stdout
    done = subprocess.run(command[:-1], cwd=project, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "error: give a clone of the template" in done.stderr


@pytest.mark.slow
def test_a_project_whose_name_is_taken_since_is_updated(both: tuple[Path, Path]) -> None:
    template, project = both
    replace(template / "src/engine/new/creating.py", 'TAKEN = {"engine"', 'TAKEN = {"mine", "engine"')
    replace(template / SUMMARY, '"""', '"""Newer. ')
    save(template)
    assert update(template, project) == 0
    assert "Newer. " in (project / SUMMARY).read_text()


@pytest.mark.slow
def test_a_project_inside_the_clone_is_named_from_where_one_is(both: tuple[Path, Path]) -> None:
    template, project = both
    replace(project / SUMMARY, "import shutil", "import shutil  # mine")
    save(project)
    replace(template / SUMMARY, '"""', '"""Newer. ')
    save(template)
    (template / "logs").mkdir(exist_ok=True)
    project.rename(template / "logs" / "mine")
    command = [sys.executable, "-m", "src.new", "--update", "logs/mine"]
    done = subprocess.run(command, cwd=template, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin"})
    assert done.returncode == 0, done.stderr
    text = (template / "logs" / "mine" / SUMMARY).read_text()
    assert "Newer. " in text
    assert "import shutil  # mine" in text


@pytest.mark.slow
def test_a_package_of_ones_own_that_is_installed_is_updated(made: Path, tmp_path: Path) -> None:
    template, project = tmp_path / "template", tmp_path / "own"
    subprocess.run(["cp", "-r", made / "template", template], check=True)
    words = ["-m", "src.new", "../own", "--kind", "lightning", "--package", "tumpkg", "--with", "train"]
    subprocess.run([sys.executable, *words], cwd=template, check=True, env={"PATH": "/usr/bin:/bin"})
    replace(template / SUMMARY, '"""', '"""Newer. ')
    save(template)
    command = [sys.executable, "-m", "tumpkg.new", "--update", "../template"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(project)}  # as if it were installed
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"merged    {SUMMARY.replace('src/', 'tumpkg/', 1)}" in done.stdout
    shutil.rmtree(project / ".git")
    with pytest.raises(
        InputError,
        match="git cannot say whether all is committed, so nothing could be undone: fatal: not a git repository",
    ):
        update(template, project)


@pytest.mark.slow
def test_what_cannot_be_updated_is_one_line_and_changes_nothing(both: tuple[Path, Path], tmp_path: Path) -> None:
    template, project = both
    with pytest.raises(InputError, match=r"nowhere: its pyproject.toml cannot be read \(No such file or directory\)"):
        update(template, tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pyproject.toml").touch()
    with pytest.raises(InputError, match="not made from this template"):
        update(template, tmp_path / "other")
    (project / "README.md").write_text("changed")
    with pytest.raises(InputError, match="it has changes that are not committed"):
        update(template, project)
    git(project, "checkout", "--quiet", ".")
    noted = re.findall('commit = "(.*)"', (project / "pyproject.toml").read_text())[0]
    replace(project / "pyproject.toml", noted, "unknown")
    save(project)
    with pytest.raises(
        InputError, match=r"has no commit unknown.*if the project was made of a copy without history, write"
    ):
        update(template, project)
    replace(project / "pyproject.toml", '"unknown"', f'"abcdef{noted}"')
    save(project)
    with pytest.raises(InputError, match=r"has no commit abcdef.*update this clone \(git pull"):
        update(template, project)
    (template / "newer.txt").touch()
    save(template)
    newer = git(template, "rev-parse", "HEAD").stdout.strip()
    git(template, "reset", "--quiet", "--hard", noted)
    replace(project / "pyproject.toml", f"abcdef{noted}", newer)
    save(project)
    with pytest.raises(InputError, match=rf"is at {noted[:12]}, older than {newer[:12]}, which .* \(git pull\) first"):
        update(template, project)
    replace(project / "pyproject.toml", newer, noted)
    replace(project / "pyproject.toml", 'kind = "regression"', 'kind = ""')
    save(project)
    with pytest.raises(InputError, match=r"--recipe default is configs/default\.yaml, and yours stays"):
        update(template, project, recipes=["default"])
    replace(project / "pyproject.toml", 'kind = ""', 'kind = "regression"')
    replace(project / "pyproject.toml", 'name = "mine"', f'name = "{DOMAIN}"')
    replace(project / "pyproject.toml", 'name = "mine"', f'name = "{DOMAIN}"')
    save(project)
    with pytest.raises(InputError, match=rf"what is added has files named {DOMAIN} too: rename yours"):
        update(template, project, recipes=[OTHER])
    for name, wrong in (("name", "../../away"), ("name", ""), ("package", "a b")):
        noted = (
            '[tool.lightning-starter]\ncommit = "a"\nname = "a"\nkind = ""\npackage = "a"\nrecipes = []\nwith = []\n'
        )
        (project / "pyproject.toml").write_text(noted.replace(f'{name} = "a"', f'{name} = "{wrong}"'))
        with pytest.raises(InputError, match=f"has the {name} {re.escape(wrong)}, which is not the name of a module"):
            update(template, project)
    (project / "pyproject.toml").write_text('[tool.lightning-starter]\ncommit = "a"\n')
    with pytest.raises(InputError, match=r"its pyproject\.toml has no name below"):
        update(template, project)
    (project / "pyproject.toml").write_text("<<<<<<< yours\n")
    with pytest.raises(InputError, match=r"its pyproject\.toml cannot be read .* settle the conflicts in it first"):
        update(template, project)
    git(project, "checkout", "--quiet", ".")
    assert git(project, "status", "--porcelain").stdout == ""


def test_an_update_that_is_stopped_has_not_noted_the_new_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side, text in (("before", "old"), ("after", "new"), ("mine", "old")):
        for path in ("pyproject.toml", "src/train.py"):
            (tmp_path / side / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / side / path).write_text(text)
    copied: list[str] = []
    monkeypatch.setattr(shutil, "copy", lambda _, path: copied.append(path.name))
    _merge(*(tmp_path / side for side in ("before", "after", "mine")), {"package": "src", "name": "a", "kind": ""})
    assert copied == ["train.py", "pyproject.toml"]


@pytest.mark.parametrize("kind", ["", "classification"])
def test_the_code_of_a_recipe_is_not_the_users_own_whatever_the_name_of_its_project(kind: str, tmp_path: Path) -> None:
    for side, text in (("before", "old"), ("after", "new"), ("mine", "old")):
        (tmp_path / side / "src" / "text").mkdir(parents=True)
        (tmp_path / side / "src" / "text" / "gpt.py").write_text(text)
    noted = {"package": "src", "name": "text", "kind": kind}
    merged, _ = _merge(*(tmp_path / side for side in ("before", "after", "mine")), noted)
    assert merged == ([] if kind else ["merged    src/text/gpt.py"])
