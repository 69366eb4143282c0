"""What a newcomer finds when he clones: the lock file, the Makefile, short files."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from src import ROOT

MALICIOUS = {"2.6.2", "2.6.3"}  # of lightning and pytorch-lightning, advisory GHSA-w37p-236h-pfx3
LOCK = (ROOT / "requirements.lock").read_text()
# A package of src/engine may import those of a lower level only, and itself.
LEVELS = {"system": 0, "tensorboard": 1, "data": 2, "runs": 2, "training": 3, "cli": 5}
LEVELS |= {"parts": 6, "deploy": 6, "search": 6, "new": 6}
NOT_A_NETWORK = ("LightningModule", "Task", "Classifier", "DataModule", "Callback")


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
    environment = {"PATH": os.environ["PATH"]}  # without the variables of the make that runs these tests
    done = subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_make_sets_up_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", " -- TORCH=cpu")  # of `make test TORCH=cpu`
    planned = make(fresh, "--dry-run", "train")
    assert "-m venv .venv" in planned
    assert "pip install" in planned
    assert planned.index("pip install") < planned.index("python -m src.train")
    (fresh / ".venv" / "bin").mkdir(parents=True)
    (fresh / ".venv" / "bin" / "python").touch()
    planned = make(fresh, "--dry-run", "train")  # uv makes environments without pip
    assert planned.index("ensurepip") < planned.index("pip install")
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
    for command in ("train", "test", "lint", "tensorboard", "bench", "figures", "lock"):
        assert re.search(rf"^  make {command} +\w", listed, re.MULTILINE), command


@cache
def imports() -> dict[str, set[str]]:
    """What every module of `src` imports, at its top or within a function, as dotted names."""
    trees = {dotted(path): ast.parse(path.read_text()) for path in (ROOT / "src").rglob("*.py")}
    found: dict[str, set[str]] = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name}: write the whole name in place of a relative import"
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= {one if one in trees else str(node.module) for one in whole}
    return found


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def place(module: str) -> tuple[str, str]:
    """What a module of `src` belongs to: command, engine (and which package), tasks, or domain (and which)."""
    _, first, *rest = module.split(".")
    if first == "engine":
        return "engine", rest[0] if rest else ""
    if first == "tasks":
        return "tasks", ""
    return ("domain" if (ROOT / "src" / first).is_dir() else "command"), first


def may_import(module: str, imported: str) -> bool:
    """Whether an import goes with the arrows: commands and domains -> tasks -> engine."""
    if imported == "src":  # the project's folder
        return True
    kind, name = place(module)
    other, package = place(imported)
    if kind == "engine" and other == "engine":
        return package in ("", name) or LEVELS[package] < LEVELS[name]
    if kind == "domain" and other == "domain":
        return package == name or name in ("multimodal", "own")  # `src/own` may use anything
    allowed = {"command": {"engine"}, "engine": set(), "tasks": {"tasks", "engine"}, "domain": {"tasks", "engine"}}
    return other in allowed[kind]


@pytest.mark.slow
def test_imports_go_with_the_arrows_only() -> None:
    own = [(a, b) for a, names in imports().items() if a != "src" for b in names if b.split(".")[0] == "src"]
    assert len(own) > 100
    assert [f"{a} imports {b}" for a, b in own if not may_import(a, b)] == []


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("src.engine.runs.runs", "src.engine.system.errors", True),
        ("src.engine.runs.runs", "src.engine.data.loading", False),  # of the same level
        ("src.engine.parts.compile", "src.engine.deploy.formats", False),
        ("src.engine.deploy.formats", "src.tasks.task", False),
        ("src.tasks.task", "src.engine.training.hyperparameters", True),
        ("src.train", "src.tasks.task", False),
        ("src.tasks.task", "src.train", False),
    ],
)
def test_an_import_against_the_arrows_is_seen(module: str, imported: str, allowed: bool) -> None:
    assert may_import(module, imported) == allowed


def test_a_domain_does_without_the_others_unless_it_joins_them() -> None:
    domains = [path.parent.name for path in (ROOT / "src").glob("*/__init__.py")]
    for name in set(domains) - {"engine", "tasks"}:
        assert may_import(f"src.{name}.net", "src.tasks.task")
        assert not may_import("src.engine.cli.config", f"src.{name}.net")
        assert not may_import("src.tasks.task", f"src.{name}.net")
        for other in set(domains) - {"engine", "tasks", name}:
            assert may_import(f"src.{name}.net", f"src.{other}.net") == (name == "multimodal")


def test_no_module_imports_itself_by_way_of_others() -> None:
    try:
        TopologicalSorter({name: names & imports().keys() for name, names in imports().items()}).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


def networks() -> list[str]:
    """The modules of the domains that define networks and nothing of Lightning."""
    found = []
    for name in imports():
        if name == "src" or place(name)[0] != "domain":
            continue
        path = ROOT / Path(*name.split(".")).with_suffix(".py")
        tree = ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])
        bases = [ast.unparse(base) for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases]
        if "nn.Module" in bases and not any(base.endswith(NOT_A_NETWORK) for base in bases):
            found.append(name)
    return found


def test_networks_need_neither_engine_nor_lightning() -> None:
    for name in networks():
        reached, left = set[str](), [name]
        while left:
            module = left.pop()
            for imported in imports().get(module, set()) - reached:
                assert imported.split(".")[0] != "lightning", f"{name} needs {module}, which imports {imported}"
                assert not imported.startswith(("src.engine", "src.tasks")), f"{name} needs {module}: {imported}"
                reached.add(imported)
                left.append(imported)
        assert "torch" in {imported.split(".")[0] for imported in reached}


@pytest.mark.parametrize("name", ["regressor", "multi_label_classifier", "segmentation", "sequence_labeler"])
def test_a_kind_of_task_adds_at_most_90_lines_of_code_to_its_base(name: str) -> None:
    text = (ROOT / "src" / "tasks" / f"{name}.py").read_text()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = [
        node.body[0] for node in ast.walk(ast.parse(text)) if isinstance(node, documented) and ast.get_docstring(node)
    ]
    left_out = {number for one in docs for number in range(one.lineno, (one.end_lineno or 0) + 1)}
    lines = [line for number, line in enumerate(text.splitlines(), start=1) if number not in left_out]
    assert len([line for line in lines if line.strip() and not line.strip().startswith("#")]) <= 90


def test_no_file_is_longer_than_one_reads() -> None:
    kinds = (".py", ".md", ".yaml", ".toml", ".html", ".sbatch")
    folders = ("src", "tests", "benchmarks", "scripts", "configs", "docs", ".github")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")] + [*ROOT.glob("*")]
    files = [path for path in files if path.suffix in kinds]
    assert len(files) > 100
    long = {str(path.relative_to(ROOT)): count for path in files if (count := len(path.read_text().splitlines())) > 400}
    assert not long


def test_uv_runs_the_commands_from_pyproject_toml() -> None:
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if not uv or not (ROOT / ".venv").exists():
        pytest.skip("uv or .venv is missing")
    command = [uv, "run", "--no-sync", "--offline", "python", "-m", "src.train", "--list"]
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "configs/default.yaml" in done.stdout
