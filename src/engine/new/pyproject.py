"""`pyproject.toml` of a new project: its name, and the packages that its code imports."""

import json
import re
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from src.engine.new.template import commit_of

TOOLS = {"mypy", "pre-commit", "pre-commit-hooks", "pytest", "pytest-xdist", "ruff"}
# Packages that are imported by another name, and those that others load by themselves.
IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
IMPORTED_AS |= {"types-pyyaml": "yaml", "types-tqdm": "tqdm", "mlflow-skinny": "mlflow"}
LOADED_BY = {"plotly": "optuna", "scikit-learn": "optuna", "alembic": "mlflow", "sqlalchemy": "mlflow"}
LOADED_BY |= {"sentencepiece": "transformers"}
BROUGHT_BY = {"sqlalchemy": "optuna"}  # modules that are installed with another package
SECTIONS: tuple[str, ...] = ("setuptools.packages.find", "setuptools.package-data")
SECTIONS += ("ruff", "ruff.lint", "ruff.lint.per-file-ignores", "mypy")
# Extras that a recipe needs to train, or its sample data; those of commands are installed when they are wanted.
TO_TRAIN = ("sample", "pretrained", "detection", "audio", "biology")


def requirements(text: str, imported: set[str]) -> dict[str, list[str]]:
    """The requirements of a `pyproject.toml` whose packages are imported: those of all, by "", and of each extra."""
    groups = {name: group for name, group in _groups(text).items() if name != "dev"}
    found = {name: [one for one in group if _is_imported(one, imported)] for name, group in groups.items()}
    return {name: group for name, group in found.items() if group}


def distributions(text: str) -> set[str]:
    """The packages that a `pyproject.toml` names, in lower case with underscores."""
    return {distribution(one).replace("-", "_") for group in _groups(text).values() for one in group}


def _groups(text: str) -> dict[str, list[str]]:
    project = tomllib.loads(text)["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def project_table(text: str, choice: Any, imported: set[str], tests: dict[str, str], root: Path) -> str:
    """The content of `pyproject.toml` for a `Choice`, which it notes for updates; `text`: the one in `root`.

    `imported`: names of packages that the code imports; `tests`: content of the tests, by path.
    """
    tool, project = (tomllib.loads(text)[name] for name in ("tool", "project"))
    tested = imported | set(re.findall(r"^\s*(?:from|import) (\w+)", "\n".join(tests.values()), re.MULTILINE))
    extras = requirements(text, imported)
    base = extras.pop("")
    own = [one for group in extras.values() for one in group]  # not by the project's name, which may change
    known = dict.fromkeys(one for group in _groups(text).values() for one in group if one not in {*base, *own})
    extras["dev"] = own + [one for one in known if _is_imported(one, tested) or distribution(one) in TOOLS]

    head = {"name": choice.name, "version": "0.1.0", "readme": "README.md", "license": choice.license}
    head["requires-python"] = project["requires-python"]
    lines = ["[build-system]", *_section(text, "build-system"), "", "[project]", *_lines(head)]
    lines += [*_array("dependencies", base, text), "", "[project.optional-dependencies]"]
    lines += [line for name, group in extras.items() for line in _array(name, group, text)]
    for section in SECTIONS:
        lines += ["", f"[tool.{section}]", *_section(text, f"tool.{section}")]
    if choice.package != "src":  # another name, longer or after `tests`
        longest = 120 + max(0, len(choice.package) - len("src"))
        lines += ["", "[tool.ruff.lint.pycodestyle]", f"max-line-length = {longest}"]
        lines += ["", "[tool.ruff.lint.isort]", 'no-lines-before = ["tests"]', 'sections = { tests = ["tests"] }']
        order = ["future", "standard-library", "third-party", "first-party", "tests", "local-folder"]
        lines += _lines({"section-order": order})
    lines = [line for line in lines if not re.match('"templates/|# Checked in the projects', line)]
    for override in tool["mypy"]["overrides"]:
        override["module"] = [one for one in override["module"] if one.partition(".")[0] in tested]
        if override["module"]:
            lines += ["", "[[tool.mypy.overrides]]", *_lines(override)]
    has_scripts = any(path.startswith("scripts/") for path in tests)
    options = _section(text, "tool.pytest.ini_options")
    lines += ["", "[tool.pytest.ini_options]", *(one for one in options if has_scripts or '"scripts"' not in one)]
    lines += ["", "# Where this project comes from: `python -m src.new --update` takes a newer engine."]
    noted = {"version": project["version"], "commit": commit_of(root), "name": choice.name, "kind": choice.kind or ""}
    noted |= {"recipes": choice.recipes, "with": choice.parts, "package": choice.package}
    return "\n".join([*lines, "[tool.lightning-starter]", *_lines(noted)]) + "\n"


def distribution(requirement: str) -> str:
    """The name of the package of a requirement, in lower case."""
    return re.split(r"[\s\[<>=!~;@(]", requirement)[0].lower()


def _is_imported(requirement: str, names: set[str]) -> bool:
    name = distribution(requirement)
    module = IMPORTED_AS.get(name, name.replace("-", "_"))
    own = {module, LOADED_BY.get(name, module), *_modules().get(name.replace("_", "-"), ())}
    return bool(own & {one for one in names if BROUGHT_BY.get(one) not in names})


@cache
def _modules() -> dict[str, list[str]]:
    """The modules of what is installed, by the name of the distribution in lower case."""
    found: dict[str, list[str]] = {}
    for module, names in packages_distributions().items():
        for name in names if module != "src" else ():  # the template itself
            found.setdefault(name.lower().replace("_", "-"), []).append(module)
    return found


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


def _lines(settings: dict[str, Any]) -> list[str]:
    """Settings in TOML."""
    return [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
