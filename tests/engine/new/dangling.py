"""Finds what a project refers to and does not have, by all names that this template has."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from src import ROOT

SUFFIXES = {".py", ".md", ".yaml", ".toml", ".html", ".json", ".sbatch", ".cff", ""}
MADE = {".git", ".venv", "logs", "data"}
# What tests of error messages mistype, and a page that this template itself lacks yet.
MISTAKES = {"configs/strategy/dp.yaml", "src.tasks.task.Tasks", "tests.toy.ToyNett"}
UNWRITTEN = "" if (ROOT / "docs" / "your_own.md").is_file() else "docs/your_own.md"
LIBRARIES = {"OneCycleLR", "CosineAnnealingLR", "TextEncoder", "GPT"}  # of torch, of browsers, of everyone
# Options of `src.train` that other commands have too.
TRAINING = {"--accelerator", "--devices", "--strategy", "--precision", "--name", "--config", "--trust", "--ckpt_path"}
OF_PIP = {"Makefile": {"--retries"}}
# Packages that are used without an import, or that another one needs.
TOOLS = {"mypy", "pre-commit", "pre-commit-hooks", "pytest", "pytest-xdist", "ruff", "tensorboard", "torch"}
LOADED = {"alembic": "mlflow", "sqlalchemy": "optuna", "plotly": "optuna", "scikit-learn": "optuna"}
IMPLIED = {"sqlalchemy", "huggingface_hub"}  # of optuna and of transformers
IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}


def dangling(project: Path, package: str = "src") -> list[str]:
    """One line for each name that the files of a project use and nothing there defines."""
    texts = _texts(project)
    found = [f"{path}: {name}" for path, text in texts.items() for name in _names(project, package, path, text)]
    return sorted({*found, *_packages(project, package, texts)})


def _texts(project: Path) -> dict[str, str]:
    found = {}
    for path in project.rglob("*"):
        parts = path.relative_to(project).parts
        is_made = parts[0] in MADE or any(part.endswith("_cache") or part == "__pycache__" for part in parts)
        if path.is_file() and path.suffix in SUFFIXES and not is_made:
            found["/".join(parts)] = path.read_text(encoding="utf-8").replace("\\.", ".")  # in regular expressions
    return found


def _names(project: Path, package: str, path: str, text: str) -> Iterator[str]:
    folders = f"{package}|configs|tests|docs|scripts|benchmarks|templates"
    for name in re.findall(rf"\b(?:{folders})/[\w./-]*\w", text):
        if not (project / name).exists() and name not in MISTAKES and not UNWRITTEN.startswith(name):
            yield name
    for name in re.findall(rf"(?<![\w./-])(?:{package}|tests)(?:\.\w+)+", text):
        if not _is_there(project, name) and re.sub(rf"^{package}\b", "src", name) not in MISTAKES:
            yield name
    optional = set(re.findall(r'hooks\("(\w+)"\)', text))  # what a part of the engine may define
    yield from set(re.findall(r"\w+", text)) & _template_names() - _defined(project, package) - optional - LIBRARIES
    if not path.startswith("tests/"):
        yield from (
            set(re.findall(r"--[a-z][\w-]*", text))
            & _options(ROOT, "src") - _options(project, package) - TRAINING - OF_PIP.get(path, set())
        )
    yield from set(re.findall(r"[\w-]+\.(?:py|yaml|html|sbatch|md)\b", text)) & _files(ROOT, "src") - _files(
        project, package
    )
    targets = set(re.findall(r"(?:^|`|run: )make ([a-z-]+)", text, re.MULTILINE))
    yield from (f"make {target}" for target in targets - _targets(project))
    yield from (f"extra {extra}" for extra in set(re.findall(r"'\.\[(\w+)\]'", text)) - _extras(project).keys())
    for link in re.findall(r"\]\(([^)#:]+)\)", text) if path.endswith(".md") else ():
        if not (project / path).parent.joinpath(link).exists():
            yield link


def _is_there(project: Path, name: str) -> bool:
    """Whether a dotted name is a module, or what a module defines."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module = project.joinpath(*parts[:count])
        file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        if file.is_file():
            rest = parts[count:]
            return not rest or rest == ["py"] or bool(re.search(rf"\b{rest[0]}\b", file.read_text(encoding="utf-8")))
    return False


@cache
def _template_names() -> set[str]:
    """Classes, functions and recipes of this template whose names are no common words."""
    found = {path.stem for path in (ROOT / "configs").rglob("*.yaml")}
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return {name for name in found if re.search(r"[a-z][A-Z]|^[A-Z]{3}|^[a-z]+_\w+[a-z]$", name)}


@cache
def _defined(project: Path, package: str) -> set[str]:
    """All names that the code of a project defines, takes from a library or as an argument, and those of its files."""
    found = {path.stem for path in project.rglob("*") if path.suffix in SUFFIXES}
    for path in (path for folder in (package, "tests", "scripts") for path in (project / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.ClassDef(name) | ast.FunctionDef(name) | ast.AsyncFunctionDef(name):
                    found.add(name)
                case ast.Name(name, ast.Store()) | ast.arg(name) | ast.Attribute(_, name) | ast.keyword(str(name)):
                    found.add(name)
                case ast.ImportFrom(str(module), names) if module.split(".")[0] not in (package, "tests"):
                    found |= {alias.name for alias in names}
    return found


@cache
def _options(project: Path, package: str) -> set[str]:
    paths = [path for folder in (package, "scripts") for path in (project / folder).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    return {option for text in texts for option in re.findall(r"""["'](--[a-z][\w-]*)["']""", text)}


@cache
def _files(project: Path, package: str) -> set[str]:
    folders = ("configs", package, "docs", "scripts", "tests")
    found = [path for folder in folders for path in (project / folder).rglob("*")]
    return {path.name for path in (*found, *project.glob("*")) if path.is_file() and path.stem != "__init__"}


@cache
def _targets(project: Path) -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (project / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@cache
def _settings(project: Path) -> Any:
    return tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))


def _table(project: Path) -> Any:
    return _settings(project)["project"]


def _extras(project: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = _table(project)["optional-dependencies"]
    return found


def _packages(project: Path, package: str, texts: dict[str, str]) -> Iterator[str]:
    """Packages that are imported and not required, or required and not used."""
    extras = _extras(project)
    runtime = [*_table(project)["dependencies"], *(one for name in extras if name != "dev" for one in extras[name])]
    known = {_import_name(one) for one in runtime}
    for_tests = known | {_import_name(one) for one in extras["dev"]}
    used = " ".join(texts[path] for path in texts if path != "pyproject.toml")
    for one in (
        one for one in (*runtime, *extras["dev"]) if "[" not in one or one.startswith(("jsonargparse", "uvicorn"))
    ):
        name = _distribution(one)
        by_another = name in LOADED and LOADED[name] in known
        if (
            not re.search(rf"\b{_import_name(one)}\b", used)
            and not by_another
            and name not in TOOLS
            and "types-" not in name
        ):
            yield f"pyproject.toml: {one} is not used"
    for folder in _settings(project)["tool"]["pytest"]["ini_options"].get("pythonpath", ()):
        if not (project / folder).is_dir():
            yield f"pyproject.toml: there is no folder {folder}"
    for path, text in texts.items():
        names = re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE) if path.endswith(".py") else []
        allowed = (known if path.startswith(f"{package}/") else for_tests) | {package, "tests", "kill"} | IMPLIED
        for name in {*names} - allowed - sys.stdlib_module_names:
            yield f"{path}: imports {name}, which pyproject.toml does not require"


def _distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~;]", requirement)[0].lower()


def _import_name(requirement: str) -> str:
    name = _distribution(requirement)
    return IMPORTED_AS.get(name, name.removesuffix("-skinny").replace("-", "_"))
