"""The files of a new project."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from src.engine.new.pyproject import TO_TRAIN, distribution, project_table, requirements
from src.engine.new.template import Template
from src.engine.new.trimming import Gone, Suite
from src.engine.system.classes import comment, nearest
from src.engine.system.errors import InputError

COPIED: tuple[str, ...] = (".ci/in-venv", ".gitignore", ".pre-commit-config.yaml", "pyproject.toml")
COPIED += (".vscode/launch.json", ".vscode/settings.json")
ALWAYS = ("train", "new")  # commands
DEFAULT: tuple[str, ...] = ("predict", "compile", "dashboard", "evaluation_pictures", "explain", "hparams", "monitors")
DEFAULT += ("network_pictures", "optimizer_overrides", "overview", "progress", "task_pictures", "throughput", "trust")
KILL = "scripts/kill.py"  # kept if a test uses it
SEARCH = "configs/tune/search.yaml"
EXAMPLE = "example"  # name of the project in the files of a kind
# Files that belong to the user once they are written: an update leaves them alone.
OWN = ("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")


@dataclass
class Choice:
    """The choices for a project, stored in `pyproject.toml` for updates.

    Args:
        name: name of the project, and of the folder of its own code.
        kind: kind of task, a folder of `templates/kinds`, or None.
        recipes: names of recipes in `configs`.
        parts: commands, parts of the engine and overlays, by the names of their files.
        package: import name in place of `src`.
        author: for licence and citation.
        license: a file of `templates/licenses`.
    """

    name: str
    kind: str | None = None
    recipes: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=lambda: list(DEFAULT))
    package: str = "src"
    author: str = ""
    license: str = "MIT"


class Project:
    """The files of the template in a folder that a choice needs; raises InputError if a name in it is not known."""

    def __init__(self, root: Path, choice: Choice) -> None:
        self.choice = choice
        if choice.kind is not None:
            _one("kind", choice.kind, kinds(root))
        self.template = template = Template(root, choice.kind)
        known = {path.name: path for path in (root / "templates/licenses").iterdir()}
        self.license: Path = _one("license", choice.license, known)
        self.recipes: list[str] = [_one("recipe", name, recipes(template)) for name in choice.recipes]
        self.recipes.sort(key=lambda path: path != "configs/default.yaml")
        self.default = self.recipes[0] if choice.kind is None else "configs/default.yaml"
        """The recipe that becomes `configs/default.yaml`."""
        self.data_option = self.given_data(self.default)
        """The option for your own data that the recipe needs, or ""."""
        roots = {path for name in (*ALWAYS, *choice.parts) for path in _one("with", name, parts(template))}
        added = {path for path in template.added if not path.startswith("tests/") and "/tune/" not in path}
        if "src/tune.py" in roots:
            searches = {path for path in _configs(template) if path.startswith("configs/tune/")}
            recipe = {path: (template.tree(path) or {}).get("recipe") for path in searches}
            roots |= {path for path in searches if path in template.added or recipe[path] in self.recipes}
        self.kept = template.reached({*roots, *added, *COPIED, *self.recipes})
        """All files but tests, by their path in a project named `example` with the package `src`."""
        free = {path for path in overlays(template) if "needs `pip install" not in template.text(path)}
        self.kept |= {path for path in free if template.needs(path) <= self.kept}

    @cached_property
    def tests(self) -> dict[str, str]:
        """Content of the tests that remain, by path."""
        template = self.template
        domains = {path.split("/")[1] for path in self.kept if path.startswith("src/")} - {"engine", "tasks"}
        every = [path for path in template.source if path.startswith("tests/")]
        inits = {path for path in every if path.endswith("__init__.py")}
        paths, data = [], set()
        for path in every:
            is_wanted = "/test_" not in path or path.split("/")[1] in domains or path in template.added
            if path.endswith(".py") and path not in inits and is_wanted:
                paths.append(path)
            if path.endswith((".yaml", ".js")):
                lacking = template.needs(path) - self.kept
                data |= set() if any(one.startswith("src/") for one in lacking) else {path}
        other = {"configs/default.yaml"} - {*self.recipes}  # a kind's, or a copy
        gone = Gone(template, {*self.kept, *data, *inits, *paths, KILL} - other)
        found = Suite(template, gone, paths, data).trimmed()
        remaining = "\n".join(found.values())
        needed = {f"{folder}/__init__.py" for path in found for folder in PurePosixPath(path).parents} & inits
        needed |= {path for path in data if PurePosixPath(path).name in remaining}
        needed |= {KILL} if re.search(r"^(from|import) kill\b", remaining, re.MULTILINE) else set()
        return found | {path: template.text(path) for path in needed}

    def lines(self) -> int:
        """Lines of code."""
        return sum(len(self.template.text(path).splitlines()) for path in self.kept if path.startswith("src/"))

    def packages(self) -> set[str]:
        """Names of packages that the code imports."""
        text = "\n".join(self.template.text(path) for path in self.kept & overlays(self.template))
        code = self.template.packages(path for path in self.kept if path.startswith("src/"))
        return {"torch", "lightning", "tensorboard", *code, *re.findall(r"needs `pip install (\w+)", text)}

    def requirements(self) -> set[str]:
        """The names of the packages to install."""
        found = requirements(self.template.text("pyproject.toml"), self.packages()).values()
        return {distribution(one) for group in found for one in group}

    def files(self) -> dict[str, bytes]:
        """Content of all files, by path."""
        choice, template = self.choice, self.template
        texts = {path: template.text(path) for path in self.kept} | self.tests
        if choice.kind is None and "configs/default.yaml" not in texts:
            texts["configs/default.yaml"] = template.text(self.default)
        table = texts["pyproject.toml"]
        texts["pyproject.toml"] = project_table(table, choice, self.packages(), self.tests, template.root)
        gone = Gone(template, {*self.kept, *self.tests})
        for page in ("README.md", "docs/your_own.md"):
            rows = texts[page].splitlines(keepends=True)
            texts[page] = "".join(row for row in rows if not (row.startswith("|") and gone.in_text(row)))
        if SEARCH in texts:
            texts[SEARCH] += self._search_options(texts["configs/default.yaml"])
        texts["LICENSE-lightning-starter"] = template.text("LICENSE")
        texts["LICENSE"] = self.license.read_text(encoding="utf-8")
        tops = {path.split("/")[1].removesuffix(".py") for path in texts if path.startswith("src/")} | {choice.name}
        values = self._values()
        found = {"logs/.gitkeep": b""}
        for source, text in texts.items():
            path = source
            if path in template.added or path in OWN:
                path, text = _named(path, choice.name), _named(text, choice.name)
                text = re.sub(r"\{\{(\w+)\}\}", lambda one: values[one[1]], text)
            is_code = path.startswith(("src/", "tests/", "configs/"))  # may have a column or an argument of that name
            if not is_code or path.endswith((".py", ".yaml")):  # in a page src is the address of a picture
                is_engine = path.startswith("src/engine/") or path.count("/") == 1
                text = packaged(text, choice.package, tops if is_code else (), is_engine)
            content = text.encode(errors="surrogateescape")
            if source in template.source and text == template.text(source):  # with its own line breaks
                content = (template.root / template.source[source]).read_bytes()
            found[packaged(path, choice.package)] = content
        return found

    def has(self, name: str) -> bool:
        """Whether a module or a folder of tests of this name is there besides the user's own."""
        paths = {*self.kept, *self.tests}
        return name != EXAMPLE and any(re.match(rf"(src|tests)/{name}(/|\.py$)", path) for path in paths)

    def _values(self) -> dict[str, str]:
        """What is written for each {{name}} in files of templates/."""
        choice, template = self.choice, self.template
        values = {"name": choice.name, "author": choice.author, "license": choice.license, "year": time.strftime("%Y")}
        values["quoted_author"] = json.dumps(choice.author, ensure_ascii=False)  # for YAML
        table = template.text("pyproject.toml")
        own = template.packages(path for path in template.reached({*self.recipes}) if path.startswith("src/"))
        to_train = {*TO_TRAIN, *requirements(table, own)}
        extras = [name for name in requirements(table, self.packages()) if name and name in to_train]
        values["extras"] = f"[{','.join(extras)}]" if extras else ""
        values |= {"data": self.data_option, "arguments": self.make_arguments, "longer": self._longer()}
        about = choice.kind and kinds(template.root)[choice.kind]["about"]
        values["about"] = about or comment(template.text(self.default))
        rows = {}
        for path in sorted(path for path in self.kept if re.fullmatch(r"src/\w+/__init__\.py", path)):
            folder = _named(path.removesuffix("__init__.py"), choice.name)
            rows[folder] = template.text(path).strip().strip('"').rstrip(".")
        rows["configs/"] = "one YAML file per recipe; overlays in folders"
        rows["tests/"] = "of your code and recipes; the template tests the engine"
        values["folders"] = "\n".join(f"| `{folder}` | {what} |" for folder, what in rows.items())
        shown = {path: f"python -m src.train --config {path}{self.given_data(path)}" for path in self.recipes}
        values["recipes"] = "".join(f"\n| train `{path}` | `{command}` |" for path, command in shown.items())
        return values

    def given_data(self, path: str) -> str:
        """The option for data of one's own, if a recipe has none."""
        return " --data.path path/to/files" if "--data.path" in comment(self.template.text(path)) else ""

    @property
    def make_arguments(self) -> str:
        """What `make train` needs for the default recipe."""
        return f' ARGS="{self.data_option.strip()}"' if self.data_option else ""

    def _search_options(self, recipe: str) -> str:
        """Lines that a search of the default recipe needs."""
        lines = []
        if (yaml.safe_load(recipe).get("checkpoint") or {}).get("monitor", "") is None:
            lines += ["metric: val/loss", "direction: minimize"]
        if self.data_option:
            lines += ["options:", f"  {self.data_option.strip().removeprefix('--').replace(' ', ': ')}"]
        return "".join(f"{line}\n" for line in lines)

    def _longer(self) -> str:
        """A row with the command that trains the default recipe for longer, with another learning rate."""
        tree = self.template.tree(self.default)
        trainer = tree.get("trainer") or {}
        steps, epochs = trainer.get("max_steps") or 0, trainer.get("max_epochs") or 10
        length = f"--trainer.max_steps {2 * steps}" if steps > 0 else f"--max_epochs {2 * epochs}"
        own = (tree["model"].get("init_args") or {}) if isinstance(tree["model"], dict) else {}
        rate = "--model.lr" if "optimizer" not in tree and "lr" in own else "--optimizer.lr"
        command = f"python -m src.train{self.data_option} {length} {rate} 1e-3"
        return f"| train longer, with another learning rate | `{command}` |"


def _one(option: str, name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        what = "command or part" if option == "with" else option
        near = nearest(name, known) or f"; known: {', '.join(known)}"
        raise InputError(f"--{option} {name}: no such {what}{near}")
    return known[name]


def kinds(root: Path) -> dict[str, dict[str, Any]]:
    """`about` and `with` of each kind of task, from its `kind.yaml`."""
    found = sorted((root / "templates/kinds").glob("*/kind.yaml"))
    return {path.parent.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in found}


def recipes(template: Template) -> dict[str, str]:
    """The recipes of a template by name: files of `configs` with model and data whose classes are there."""
    classes = {path: _classes(template, path) for path in _configs(template) if path not in template.added}
    known = {name for names in classes.values() for name in names if name in template.classes or "." in name}
    found = [path for path, names in classes.items() if names and known.issuperset(names)]
    count = Counter(PurePosixPath(path).stem for path in found)
    return {name if count[name := PurePosixPath(path).stem] == 1 else path: path for path in found}


def _classes(template: Template, path: str) -> list[str]:
    """The names of model and data in a recipe; a model that makes its own loaders needs no data. Else empty."""
    tree = template.tree(path) or {}
    parts = [tree[key] for key in ("model", "data") if tree.get(key)]
    names = [(part.get("class_path") or "") if isinstance(part, dict) else part for part in parts]
    if "model" not in tree or "data" in tree:
        return names if {"model", "data"} <= tree.keys() else []
    name = next(iter(names), "")  # an overlay may have arguments of the model only
    file = template.classes.get(name) or template.module(name.rpartition(".")[0])
    return names if file is not None and "def train_dataloader(" in template.text(file) else []


def default_parts(root: Path, names: list[str]) -> list[str]:
    """The commands and parts of a project with these recipes; `generate` for language models."""
    template = Template(root)
    known = recipes(template)
    models = [_classes(template, known[name])[0] for name in names if name in known]
    texts = [template.text(template.classes[name]) for name in models if name in template.classes]
    writes = [re.search(r"^    def generate\(", text, re.MULTILINE) is not None for text in texts]
    commands = (["generate"] if any(writes) else []) + (["predict"] if not writes or not all(writes) else [])
    return [*commands, *(part for part in DEFAULT if part != "predict")]


def overlays(template: Template) -> set[str]:
    """The files of `configs` that are neither recipes nor searches."""
    others = (path for path in _configs(template) if not path.startswith("configs/tune/"))
    return {path for path in others if not _classes(template, path)}


def parts(template: Template) -> dict[str, list[str]]:
    """The commands, parts of the engine and overlays of a template with their files, by name."""
    found: dict[str, list[str]] = {}
    named = re.compile(r"src/(engine/(parts|tensorboard)/)?(?!__init__)\w+\.py")
    files = [path for path in template.source if named.fullmatch(path)]
    own = [path for path in files if "/tensorboard/" not in path or "\ndef callbacks(" in template.text(path)]
    for path in (*sorted(own, key=lambda path: (path.count("/"), path)), *sorted(overlays(template))):
        found.setdefault(PurePosixPath(path).stem, []).append(path)
    return found


def _configs(template: Template) -> Iterable[str]:
    return sorted(path for path in template.source if path.startswith("configs/") and path.endswith(".yaml"))


def packaged(text: str, package: str, tops: Iterable[str] = (), is_engine: bool = False) -> str:
    """Text with a project's import name in place of `src`, except where `src` is marked as the template's.

    `tops`: names in `src`; if given, only before one of them or in an import. `is_engine`: also as a folder name.
    """
    if package == "src":
        return text
    word = r'(?<![\w.-])src\b(?![=-]|"  # of the template)'
    names = rf"{word}(?=[./](?:{'|'.join(sorted(tops))})\b| import\b)|(?<=import ){word}|(?<=/ \"){word}"
    if is_engine:
        names += rf'|{word}(?=/[\w{{*<]|\.\W|"\))|(?<=/){word}|(?<=== "){word}'
    return re.sub(names if tops else word, package, text)


def _named(text: str, name: str) -> str:
    """Text of a kind with the name of the project in place of `example`."""
    camel = "".join(word.capitalize() for word in name.split("_"))
    paths = rf"(?<=src[./]){EXAMPLE}\b|(?<=tests[./]){EXAMPLE}\b|(?<=test_){EXAMPLE}\b"
    return re.sub(paths, name, re.sub(r"\bExample(?=[A-Z])", camel, text))
