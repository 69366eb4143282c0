"""The files of a new project."""

import re
import time
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from src.engine.new.template import Template, commit_of
from src.engine.new.trimming import Gone, trimmed_tests
from src.engine.system.classes import nearest
from src.engine.system.errors import InputError

COPIED = (".ci/in-venv", ".gitignore", ".pre-commit-config.yaml", "logs/.gitkeep", "pyproject.toml")
KILL = "scripts/kill.py"  # kept if a test uses it
ALWAYS = ("train", "new")  # commands
# Files that belong to the user once they are written: an update leaves them alone.
OWN = ("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")
TOOLS = {"mypy", "pre-commit", "pre-commit-hooks", "pytest", "pytest-xdist", "ruff"}
# Packages that are imported by another name, and those that others load by themselves.
IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "python-multipart": "multipart"}
IMPORTED_AS |= {"types-pyyaml": "yaml", "types-tqdm": "tqdm", "mlflow-skinny": "mlflow"}
LOADED_BY = {"plotly": "optuna", "scikit-learn": "optuna", "alembic": "mlflow", "sqlalchemy": "mlflow"}


@dataclass
class Choice:
    """What a project is made of; `pyproject.toml` notes it for updates.

    Args:
        name: name of the project, and of the folder of its own code.
        kind: kind of task, a folder of `templates/kinds`, or None.
        recipes: names of recipes in `configs`.
        parts: commands, parts of the engine and overlays, by the name of their file.
        package: import name in place of `src`.
        author: for licence and citation.
        license: a file of `templates/licenses`.
    """

    name: str
    kind: str | None = None
    recipes: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=lambda: ["train", "predict"])
    package: str = "src"
    author: str = ""
    license: str = "MIT"


class Project:
    """The files that a choice needs.

    Args:
        root: folder of the template.
        choice: what to take.

    Raises:
        InputError: a name of the choice is not known.
    """

    def __init__(self, root: Path, choice: Choice) -> None:
        self.choice = choice
        self.template = Template(root, choice.kind)
        self.recipes = [self._one("recipe", name, recipes(self.template)) for name in choice.recipes]
        places = parts(self.template)
        roots = [path for name in (*ALWAYS, *choice.parts) for path in self._one("with", name, places)]
        own = [path for path in self.template.added if path.startswith(("src/", "configs/")) and "/tune/" not in path]
        self.needed = self.template.reached([*roots, *own, *self.recipes])
        """Files of `src` and `configs`, without overlays that come along."""

    def _one(self, option: str, name: str, known: dict[str, Any]) -> Any:
        if name not in known:
            near = nearest(name, known) or f"; known: {', '.join(known)}"
            raise InputError(f"--{option} {name}: no such {'part' if option == 'with' else option}{near}")
        return known[name]

    @cached_property
    def kept(self) -> set[str]:
        """All files but tests, by their path in a project named `example` with the package `src`."""
        kept = {*self.needed, *COPIED, *self.template.added, "LICENSE", "configs/default.yaml"}
        for path in self.template.source:
            if path.startswith("configs/") and path not in self.needed:
                is_overlay = "/tune/" not in path and path not in recipes(self.template).values()
                needs = self.template.needs(path)
                asks = "needs `pip install" in self.template.text(path)
                if not needs <= kept or asks or not is_overlay:
                    kept.discard(path)
                else:
                    kept.add(path)
        kept.add("configs/default.yaml")
        if "src/tune.py" in kept:
            kept |= {path for path in self.template.added if "/tune/" in path}
        return kept

    @cached_property
    def gone(self) -> Gone:
        """Finds names of what the project leaves out."""
        return Gone(self.template, {*self.kept, *(path for path in self.template.source if path.startswith("tests/"))})

    @cached_property
    def tests(self) -> dict[str, str]:
        """Content of the tests that remain, by path."""
        folders = {path.split("/")[1] for path in self.kept if path.startswith("src/")} | {"engine"}
        paths = [
            path
            for path in self.template.source
            if path.startswith("tests/")
            and path.endswith(".py")
            and not path.endswith("__init__.py")
            and (path.split("/")[1] in folders or (path.count("/") == 1 and not is_of_the_template(path)))
        ]
        others = {path for path in self.template.source if path.startswith("tests/") and path not in paths}
        gone = Gone(self.template, self.kept | others | {KILL})
        found = trimmed_tests(self.template, gone, paths)
        inits = {f"{folder}/__init__.py" for path in found for folder in list(PurePosixPath(path).parents)[:-1]}
        return found | dict.fromkeys(inits, "") | {"tests/toy.yaml": self.template.text("tests/toy.yaml")}

    @cached_property
    def packages(self) -> dict[str, set[str]]:
        """Names that the code imports, and those that only tests do."""
        overlays = " ".join(self.template.text(path) for path in self.kept if path.startswith("configs/"))
        code = self.template.packages(path for path in self.kept if path.startswith("src/"))
        return {"code": {"torch", "lightning", "tensorboard", *code, *re.findall(r"pip install (\w+)", overlays)}}

    @property
    def lines(self) -> int:
        """Lines in the folder of the code."""
        return sum(len(self.template.text(path).splitlines()) for path in self.kept if path.startswith("src/"))

    def files(self) -> dict[str, bytes]:
        """Content of all files, by path."""
        texts = {path: self.template.text(path) for path in self.kept - {"LICENSE", "logs/.gitkeep"}} | self.tests
        first = next((path for path in self.recipes), None)
        if first is not None and self.choice.kind is None and first != "configs/default.yaml":
            texts["configs/default.yaml"] = self.template.text(first)
        texts["pyproject.toml"] = self._pyproject(texts["pyproject.toml"])
        texts["README.md"] = self._readme(texts["README.md"])
        texts["src/engine/LICENSE"] = self.template.text("LICENSE")
        texts["LICENSE"] = _read_license(self.template.root, self.choice.license)
        values = {"name": self.choice.name, "author": self.choice.author, "license": self.choice.license}
        values |= {"year": time.strftime("%Y")}
        found = {}
        for path, text in texts.items():
            if path in self.template.added or path in OWN:
                path, text = self._named(path), self._named(text)
                text = re.sub(r"\{\{(\w+)\}\}", lambda one: values[one[1]], text)
            found[_packaged(path, self.choice.package)] = _packaged(text, self.choice.package).encode()
        return {**found, "logs/.gitkeep": b""}

    def _named(self, text: str) -> str:
        """Text of a kind with the name of the project in place of `example`."""
        camel = "".join(word.capitalize() for word in self.choice.name.split("_"))
        return re.sub(r"\bexample\b|(?<=test_)example\b", self.choice.name, re.sub(r"\bExample(?=[A-Z])", camel, text))

    def _readme(self, text: str) -> str:
        rows = [
            f"| train {path.removeprefix('configs/')} | `python -m src.train --config {path}` |"
            for path in self.recipes
        ]
        first = self.template.text(self.recipes[0]) if self.recipes else ""
        about = str(kind_of(self.template.root, self.choice.kind)["about"]) if self.choice.kind else _comment(first)
        folders = [f"| `{path}` | {what} |" for path, what in self._folders().items()]
        for name, value in (("about", about), ("folders", "\n".join(folders)), ("recipes", "\n".join(rows))):
            text = text.replace(f"{{{{{name}}}}}", value)
        lines = [line for line in text.splitlines() if not (line.startswith("|") and self.gone.find(line)) and line]
        return re.sub(r"\n(?=(#|\| .*\n\| ---|```bash))", "\n\n", "\n".join(lines)) + "\n"

    def _folders(self) -> dict[str, str]:
        """The folders of the project and what they hold."""
        found = {}
        for path in sorted(path for path in self.kept if re.fullmatch(r"src/\w+/__init__\.py", path)):
            found[f"{PurePosixPath(path).parent}/"] = self.template.text(path).strip().strip('"').rstrip(".")
        return {
            **found,
            "configs/": "one YAML file per recipe; overlays in folders",
            "tests/": "the same folders as `src/`",
        }

    def _pyproject(self, text: str) -> str:
        choice = self.choice
        imported = self.packages["code"]
        tested = {
            part
            for source in self.tests.values()
            for part in re.findall(r"^\s*(?:from|import) (\w+)", source, re.MULTILINE)
        }
        project = tomllib.loads(text)["project"]
        template_name, version = project["name"], project["version"]
        base = [one for one in project["dependencies"] if _is_imported(one, imported)]
        extras = {
            name: [one for one in some if _is_imported(one, imported)]
            for name, some in project["optional-dependencies"].items()
            if name != "dev"
        }
        extras = {name: some for name, some in extras.items() if some}
        everything = [
            *project["dependencies"],
            *(one for some in project["optional-dependencies"].values() for one in some),
        ]
        chosen = {*base, *(one for some in extras.values() for one in some)}
        dev = [
            one
            for one in everything
            if one not in chosen
            and (
                _distribution(one) in TOOLS
                or _is_imported(one, tested)
                or (_distribution(one).startswith("types-") and _is_imported(one, imported))
            )
        ]
        own = [f"{choice.name}[{','.join(extras)}]"] if extras else []
        head = {"name": choice.name, "version": "0.1.0", "readme": "README.md", "license": choice.license}
        lines = ["[build-system]", *_section(text, "build-system"), "", "[project]"]
        lines += [f'{key} = "{value}"' for key, value in head.items()]
        lines += [f'requires-python = "{project["requires-python"]}"', *_array("dependencies", base)]
        lines += ["", "[project.optional-dependencies]"]
        lines += [line for name, some in {**extras, "dev": own + dev}.items() for line in _array(name, some)]
        for section in ("setuptools.packages.find", "ruff", "ruff.lint", "ruff.lint.per-file-ignores", "mypy"):
            lines += ["", f"[tool.{section}]", *_section(text, f"tool.{section}")]
        for override in tomllib.loads(text)["tool"]["mypy"]["overrides"]:
            modules = [one for one in override.pop("module") if one.partition(".")[0] in {*imported, *tested}]
            if modules:
                lines += ["", "[[tool.mypy.overrides]]", f"module = {_quoted(modules)}"]
                lines += [f"{key} = {str(value).lower()}" for key, value in override.items()]
        pytest = [line for line in _section(text, "tool.pytest.ini_options") if "scripts" not in line]
        lines += ["", "[tool.pytest.ini_options]", *pytest]
        lines += [
            "",
            "# Where this project comes from; `python -m src.new --update` uses it.",
            "[tool.lightning-starter]",
        ]
        noted = {"version": version, "commit": commit_of(self.template.root), **asdict(choice)}
        for key, value in noted.items():
            if value and key not in ("author", "license"):
                lines.append(
                    f"{key} = {_quoted(value) if isinstance(value, list) else repr(value).replace(chr(39), chr(34))}"
                )
        return "\n".join(lines) + "\n" if template_name else ""


def parts(template: Template) -> dict[str, list[str]]:
    """The commands, parts of the engine and overlays of a template with their files, by name."""
    found: dict[str, list[str]] = {}
    for folder in ("src", "src/engine/parts"):
        for name in template.names(folder, ".py"):
            found.setdefault(name, []).append(f"{folder}/{name}.py")
    searches_and_recipes = {*recipes(template).values()}
    for path in sorted(template.source):
        if path.startswith("configs/") and path not in searches_and_recipes and "/tune/" not in path:
            found.setdefault(PurePosixPath(path).stem, []).append(path)
    return found


def recipes(template: Template) -> dict[str, str]:
    """The recipes of a template by name: files of `configs` with model and data."""
    found = {}
    for path in sorted(template.source):
        if path.startswith("configs/") and path not in template.added and path.endswith(".yaml"):
            tree = yaml.safe_load(template.text(path))
            if isinstance(tree, dict) and "model" in tree and "data" in tree:
                found[PurePosixPath(path).stem] = path
    return found


def kinds(root: Path) -> list[str]:
    """The kinds of tasks that a project can start with."""
    return sorted(path.name for path in (root / "templates" / "kinds").iterdir() if (path / "kind.yaml").is_file())


def kind_of(root: Path, name: str) -> dict[str, Any]:
    """What a kind says of itself: `about` and `with`."""
    found: dict[str, Any] = yaml.safe_load((root / "templates" / "kinds" / name / "kind.yaml").read_text("utf-8"))
    return found


def licenses(root: Path) -> list[str]:
    """The licences that a project can have."""
    return sorted(path.name for path in (root / "templates" / "licenses").iterdir())


def is_of_the_template(path: str) -> bool:
    """Whether a test is about the template itself."""
    return PurePosixPath(path).name.startswith("test_") and path != "tests/test_configs.py"


def _read_license(root: Path, name: str) -> str:
    return (root / "templates" / "licenses" / name).read_text(encoding="utf-8")


def _packaged(text: str, package: str) -> str:
    """Text with the import name of a project in place of `src`."""
    return text if package == "src" else re.sub(r"(?<![\w.-])src\b(?![=-])", package, text)


def _comment(text: str) -> str:
    """The comment at the head of a YAML file, as one line."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def _distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~;]", requirement)[0].lower()


def _is_imported(requirement: str, names: Iterable[str]) -> bool:
    name = _distribution(requirement)
    module = IMPORTED_AS.get(name, name.replace("-", "_"))
    return bool({module, module.lower(), LOADED_BY.get(name, module)} & {*names})


def _section(text: str, name: str) -> list[str]:
    """The lines of a section of a TOML file."""
    found = re.search(rf"^\[{re.escape(name)}\]\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1].rstrip().splitlines() if found else []


def _array(name: str, values: list[str]) -> list[str]:
    return [f"{name} = [", *(f'  "{value}",' for value in values), "]"]


def _quoted(values: list[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"
