"""What a release and its users need: one version, a wheel, a note for old imports, settings of tools."""

import json
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

from src import ROOT
from src.engine.cli.cli import StarterCLI
from tests.conftest import copy_of_the_repository
from tests.recipes import DELETED, RECIPES, can_run

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
MOVED = re.findall(
    r"^\| `(src\.[\w.]+)` \| `(src\.[\w.]+)` \|$",
    (ROOT / "docs" / "migration.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)
LAUNCH = json.loads((ROOT / ".vscode" / "launch.json").read_text())["configurations"]


def test_all_files_name_the_same_version() -> None:
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == VERSION
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    assert VERSION.rpartition(".")[0] in (ROOT / "docs" / "migration.md").read_text().splitlines()[0]


def is_module(name: str) -> bool:
    return (ROOT / f"{name.replace('.', '/')}.py").is_file()


def test_the_migration_note_names_modules_that_moved() -> None:
    assert len(MOVED) > 20
    for old, new in MOVED:
        assert not is_module(old), old
        assert is_module(new) or new.split(".")[1] in DELETED, new


def test_the_migration_notes_command_moves_imports(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^sed .*?' my_file\.py$", page, re.MULTILINE | re.DOTALL)
    file = tmp_path / "my_file.py"
    file.write_text("".join(f"from {old} import x\n" for old, _ in MOVED))
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert file.read_text() == "".join(f"from {new} import x\n" for _, new in MOVED)


@pytest.mark.parametrize("entry", LAUNCH, ids=lambda entry: entry["name"])
def test_what_vs_code_starts_is_understood(entry: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    module, args = str(entry["module"]), list(map(str, entry["args"]))  # type: ignore[call-overload]
    if module != "src.train":
        assert module == "pytest"
        return
    words = [word.replace("${file}", RECIPES[0]) for word in args if word not in ("last", "--ckpt_path")]
    recipe = [] if can_run("configs/default.yaml") else ["--config", RECIPES[0]]
    with pytest.raises(SystemExit) as stop:
        StarterCLI([*recipe, *words, "--print_config"], time.perf_counter())
    assert stop.value.code == 0


@pytest.mark.slow
def test_the_wheel_is_complete_and_its_metadata_pass(tmp_path: Path) -> None:
    pytest.importorskip("build")
    pytest.importorskip("twine")
    copy = copy_of_the_repository(tmp_path / "copy")
    for command in (
        ("build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")),
        ("twine", "check", "--strict", str(tmp_path / "dist" / "*.whl")),
    ):
        done = subprocess.run([sys.executable, "-m", *command], cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert VERSION in wheel.name
    packed = set(zipfile.ZipFile(wheel).namelist())
    ours = {path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {str(path.relative_to(ROOT)) for path in ours} - packed == set()
