"""`pyproject.toml` of a new project: its name, and the packages that its code imports."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from src.engine.new.template import commit_of

TOOLS = {"mypy", "pre-commit", "pre-commit-hooks", "pytest", "pytest-xdist", "ruff"}
# Packages that are imported by another name, and those that others load by themselves.
IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "python-multipart": "multipart"}
IMPORTED_AS |= {"types-pyyaml": "yaml", "types-tqdm": "tqdm", "mlflow-skinny": "mlflow"}
LOADED_BY = {"plotly": "optuna", "scikit-learn": "optuna", "alembic": "mlflow", "sqlalchemy": "mlflow"}
SECTIONS = ("setuptools.packages.find", "ruff", "ruff.lint", "ruff.lint.per-file-ignores", "mypy")


def project_table(text: str, choice: Any, imported: set[str], tests: dict[str, str], root: Path) -> str:
    """The file's content.

    Args:
        text: that of the template.
        choice: the `Choice` of the project, which is noted for updates.
        imported: names of packages that the code imports.
        tests: content of the tests, by path.
        root: folder of the template.
    """
    template = tomllib.loads(text)
    project, extras = template["project"], template["project"]["optional-dependencies"]
    sources = "\n".join(tests.values())
    tested = imported | set(re.findall(r"^\s*(?:from|import) (\w+)", sources, re.MULTILINE))
    base = [one for one in project["dependencies"] if _is_imported(one, imported)]
    dev = extras.pop("dev")
    kept = {
        name: found for name, some in extras.items() if (found := [one for one in some if _is_imported(one, imported)])
    }
    named = {*base, *(one for some in kept.values() for one in some)}
    everything = [*project["dependencies"], *(one for some in extras.values() for one in some), *dev[1:]]
    tools = [one for one in everything if _is_imported(one, tested) or _distribution(one) in TOOLS]
    own = [f"{choice.name}[{','.join(kept)}]"] if kept else []
    kept["dev"] = [*own, *(one for one in tools if one not in named)]

    lines = ["[build-system]", *_section(text, "build-system"), "", "[project]"]
    head = {"name": choice.name, "version": "0.1.0", "readme": "README.md", "license": choice.license}
    head["requires-python"] = project["requires-python"]
    lines += [
        *map(_line, head, head.values()),
        *_array("dependencies", base, text),
        "",
        "[project.optional-dependencies]",
    ]
    for name, some in kept.items():
        lines += _array(name, some, text)
    for section in SECTIONS:
        lines += ["", f"[tool.{section}]", *_section(text, f"tool.{section}")]
    for override in template["tool"]["mypy"]["overrides"]:
        modules = [one for one in override.pop("module") if one.partition(".")[0] in tested]
        if modules:
            lines += ["", "[[tool.mypy.overrides]]", _line("module", modules), *map(_line, override, override.values())]
    lines += ["", "[tool.pytest.ini_options]", *_section(text, "tool.pytest.ini_options")]
    lines += [
        "",
        "# Where this project comes from: `python -m src.new --update` takes a newer engine.",
        "[tool.lightning-starter]",
    ]
    noted = {"version": project["version"], "commit": commit_of(root), "name": choice.name, "kind": choice.kind or ""}
    noted |= {"recipes": choice.recipes, "with": choice.parts, "package": choice.package}
    return "\n".join([*lines, *map(_line, noted, noted.values())]) + "\n"


def _distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~;]", requirement)[0].lower()


def _is_imported(requirement: str, names: Iterable[str]) -> bool:
    name = _distribution(requirement)
    module = IMPORTED_AS.get(name, name.replace("-", "_"))
    return bool({module, LOADED_BY.get(name, module)} & {*names})


def _section(text: str, name: str) -> list[str]:
    """The lines of a section of a TOML file."""
    found = re.search(rf"^\[{re.escape(name)}\]\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1].rstrip().splitlines() if found else []


def _array(name: str, values: list[str], text: str) -> list[str]:
    """An array of requirements, each with the comments that it has in the template."""
    lines = [f"{name} = ["]
    for value in values:
        found = re.search(rf'((?:  #.*\n)*)  "{re.escape(value)}",(.*)\n', text)
        lines += [*(found[1].splitlines() if found else []), f'  "{value}",{found[2] if found else ""}']
    return [*lines, "]"]


def _line(key: str, value: Any) -> str:
    """One setting in TOML; text or a list of texts."""
    if isinstance(value, bool):
        return f"{key} = {str(value).lower()}"
    return f"{key} = " + (
        f'"{value}"' if isinstance(value, str) else "[" + ", ".join(f'"{one}"' for one in value) + "]"
    )
