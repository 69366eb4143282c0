"""What a stranger meets when he clones: the lock file, the Makefile, the rooms."""

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from src import ROOT

MALICIOUS = {"2.6.2", "2.6.3"}  # of lightning and pytorch-lightning, advisory GHSA-w37p-236h-pfx3
LOCK = (ROOT / "requirements.lock").read_text()


def test_the_lock_file_names_no_malicious_release() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", LOCK, re.MULTILINE))
    for name in ("lightning", "pytorch-lightning"):
        assert pinned[name] not in MALICIOUS


def test_every_locked_version_is_hash_checked_and_no_host_is_named() -> None:
    blocks = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE))
    assert len(blocks) > 50
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in LOCK


def test_the_lock_file_fits_the_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    requirements = [Requirement(text) for text in [*project["dependencies"], *extras]]
    requirements = [requirement for requirement in requirements if requirement.name != project["name"]]
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", LOCK, re.MULTILINE))
    for requirement in requirements:
        assert requirement.specifier, f"{requirement.name} has no lower bound"
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier
    (lightning,) = [r for r in requirements if r.name == "lightning"]
    assert not any(version in lightning.specifier for version in MALICIOUS)


def make(folder: Path, *words: str) -> str:
    done = subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_make_sets_up_once(fresh: Path) -> None:
    planned = make(fresh, "--dry-run", "train")
    assert "-m venv .venv" in planned
    assert "pip install" in planned
    assert planned.index("pip install") < planned.index("python -m src.train")
    (fresh / ".venv" / "bin").mkdir(parents=True)
    (fresh / ".venv" / "bin" / "python").touch()
    (fresh / ".venv" / ".bounds").touch()
    assert "install" not in make(fresh, "--dry-run", "train")
    assert "'.[dev]'" in make(fresh, "--dry-run", "test")


def test_make_installs_what_the_variables_ask_for(fresh: Path) -> None:
    assert "--require-hashes --requirement requirements.lock" in make(fresh, "--dry-run", "train", "LOCKED=1")
    assert "whl/cpu" in make(fresh, "--dry-run", "train", "TORCH=cpu")
    assert "whl/cpu" not in make(fresh, "--dry-run", "train")
    assert "not both" in make(fresh, "--dry-run", "train", "TORCH=cpu", "LOCKED=1")
    assert "only TORCH=cpu is known" in make(fresh, "--dry-run", "train", "TORCH=gpu")
    assert "--max_epochs 1" in make(fresh, "--dry-run", "train", "ARGS=--max_epochs 1")


def test_make_help_lists_the_commands(fresh: Path) -> None:
    listed = make(fresh, "help")
    for command in ("train", "test", "lint", "tensorboard", "bench", "lock"):
        assert re.search(rf"^  make {command} +\w", listed, re.MULTILINE), command


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [("data", {"src.models"}), ("models", {"src.data"}), ("callbacks", {"src.data", "src.models"})],
)
def test_no_room_imports_against_the_arrows(room: str, forbidden: set[str]) -> None:
    for path in (ROOT / "src" / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert not any(name == room or name.startswith(f"{room}.") for room in forbidden), (path, name)


def test_networks_are_pure_pytorch() -> None:
    for path in (ROOT / "src" / "models").glob("*.py"):
        text = path.read_text()
        if not re.search(r"LightningModule|import .*\bTask\b", text):
            assert not re.search(r"^\s*(from|import) lightning", text, re.MULTILINE), path


def test_no_file_is_longer_than_one_reads() -> None:
    kinds = (".py", ".md", ".yaml", ".toml", ".html", ".sbatch")
    rooms = ("src", "tests", "benchmarks", "scripts", "configs", "docs", ".github")
    files = [path for room in rooms for path in (ROOT / room).rglob("*")] + [*ROOT.glob("*")]
    files = [path for path in files if path.suffix in kinds]
    assert len(files) > 100
    long = {str(path.relative_to(ROOT)): count for path in files if (count := len(path.read_text().splitlines())) > 400}
    assert not long
