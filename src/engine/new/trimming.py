"""Selects the tests of a new project: those whose code it has."""

import ast
import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath

from src.engine.new.template import Template, module_of

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
IMPORTS = ast.Import | ast.ImportFrom
WORD = re.compile(r"\w+")
TELLING = re.compile(r"[a-z][A-Z]|^[A-Z]{2}")  # a class name that is no common word
PATH_OR_OPTION = re.compile(r"\b(?:src|configs|tests|docs|scripts|benchmarks)/[\w./-]*\w|--[a-z][\w.]*")

Key = tuple[str, str]  # a file of tests and a name in it; "": all of it
GONE: Key = ("", "")  # what is not in the project


class Gone:
    """Finds references to what a project leaves out of this template, all files but `kept`."""

    def __init__(self, template: Template, kept: Iterable[str]) -> None:
        self.template = template
        self.kept = {*kept}
        dropped = template.source.keys() - self.kept
        self.names = _names(template, dropped) - _names(template, self.kept)
        self.files = {PurePosixPath(path).name for path in dropped} - {PurePosixPath(path).name for path in self.kept}
        parts = [path for path in dropped if path.startswith(("src/engine/parts/", "src/engine/tensorboard/"))]
        others = [template.text(path) for path in self.kept if path.startswith("src/")]
        marks = {text for path in parts for text in template.named(path)[0] if re.fullmatch(r"[\w ]*[/.][\w /]+", text)}
        self.marks = {text for text in marks if len(text) > 6 and not any(text in other for other in others)}
        """Names of files and of values for TensorBoard that only the dropped parts of the engine write."""

    def module(self, name: str) -> bool:
        """Whether a module, or a script with this name, is in the template and not in the project."""
        scripts = (f"scripts/{name}.py", f"benchmarks/{name}.py")
        file = self.template.module(name) or next((one for one in scripts if one in self.template.source), None)
        return file is not None and file not in self.kept

    def in_text(self, text: str) -> bool:
        """Whether a text names something that is gone."""
        if self.names & {*PATH_OR_OPTION.findall(text), *WORD.findall(text)}:
            return True
        for name in re.findall(r"\b(?:src|tests)(?:\.\w+)+", text):
            while name and not self.template.module(name):  # up to the module in which it is
                name = name.rpartition(".")[0]
            if self.module(name) or name in ("", "src", "tests"):
                return True
        return (text in self.files and "." in text) or any(mark in text for mark in self.marks)


def _names(template: Template, paths: Set[str]) -> set[str]:
    """What a text may call these files: their paths and folders, the names of recipes and classes, options they add."""
    folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
    found = {path for path in paths | folders if "/" in path}
    found |= {name for name, path in template.classes.items() if path in paths and TELLING.search(name)}
    for path in paths:
        if path.startswith("configs/") and re.search(r"_|\d", stem := PurePosixPath(path).stem):
            found.add(stem)
        elif path.startswith("src/engine/parts/"):
            found |= {*re.findall(r'add_argument\(\s*"(--[a-z_]+)"', template.text(path))}
    return found


@dataclass(eq=False)
class Part:
    """A statement at the top of a test file, with the comments and the number of empty lines before it."""

    path: str
    node: ast.stmt
    source: str
    blank: int

    def __post_init__(self) -> None:
        node, source, nodes = self.node, self.source, [*ast.walk(self.node)]
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        whole = [one.value if isinstance(one, ast.Subscript) else one for one in targets]
        assigned = {one.id for target in whole for one in ast.walk(target) if isinstance(one, ast.Name)}
        self.names = {node.name} if isinstance(node, FUNCTIONS | ast.ClassDef) else assigned
        self.is_item = bool(targets) and isinstance(targets[0], ast.Subscript)
        self.is_fixture = isinstance(node, FUNCTIONS) and "@pytest.fixture" in source
        texts = [one.value for one in nodes if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        self.texts = [] if source.startswith('"""') else texts  # the docstring of the file may name what is gone
        self.imports = [one for one in nodes if isinstance(one, IMPORTS)]
        arguments = {one.arg for one in nodes if isinstance(one, ast.arg)}
        stored = {one.id for one in nodes if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
        local = arguments | stored if isinstance(node, FUNCTIONS) else set()
        types = [one for each in nodes for name in ("annotation", "returns") if (one := getattr(each, name, None))]
        quoted = (str(one.value) for each in types for one in ast.walk(each) if isinstance(one, ast.Constant))
        self.uses = {one.id for one in nodes if isinstance(one, ast.Name)} - local
        self.uses |= {word for text in quoted for word in WORD.findall(text)}
        told = {word for text in self.texts for word in WORD.findall(text) if TELLING.search(word)}
        self.words = (self.uses | told | {one.attr for one in nodes if isinstance(one, ast.Attribute)}) - self.names
        self.asks = bool(re.search("getfixturevalue|usefixtures", source))  # for fixtures by name
        self.fixtures = arguments.union(WORD.findall(source) if self.asks else ()) - self.names


class Suite:
    """Python files of tests (`paths`), and what each statement in them needs; `data`: other files that name helpers."""

    def __init__(self, template: Template, gone: Gone, paths: Iterable[str], data: Iterable[str]) -> None:
        self.template = template
        self.gone = gone
        self.files = {path: _parts(path, template.text(path)) for path in paths}
        self.data = {PurePosixPath(path).name: template.text(path) for path in data}
        self.parts: dict[Key, list[Part]] = {(path, ""): parts for path, parts in self.files.items()}
        for part in (part for parts in self.files.values() for part in parts):
            for name in part.names:
                self.parts.setdefault((part.path, name), []).append(part)
        self.needs = {part: {*self._needs(part)} for parts in self.files.values() for part in parts}

    def trimmed(self) -> dict[str, str]:
        """Content of the files that remain, by path: tests that lack nothing, and what these use."""
        lacking = {part for part, needs in self.needs.items() if GONE in needs}
        for part in filter(self._replaces, [*lacking]):
            lacking |= {*self.files[part.path]}  # they may use what it replaces
        while more := {part for part in self.needs if part not in lacking and self._needs_any(part, lacking)}:
            lacking |= more
        kept = set[Part]()
        left = [part for part in self.needs if any(name.startswith(("test_", "Test")) for name in part.names)]
        while left:
            part = left.pop()
            if part not in kept and part not in lacking:
                kept.add(part)
                left += [one for key in self.needs[part] for one in self.parts.get(key, [])]
                left += self._automatic(part)
        found = {}
        for path, parts in self.files.items():
            stays = [part for part in parts if part in kept or (not part.names and part not in lacking)]
            if any(part.names for part in stays):
                found[path] = _joined(stays)
        return found

    def _needs_any(self, part: Part, lacking: set[Part]) -> bool:
        for path, name in self.needs[part]:
            gone = [one in lacking for one in self.parts.get((path, name), []) if not name or not one.is_item]
            if any(gone) if name else all(gone):
                return True
        return False

    def _needs(self, part: Part) -> Iterator[Key]:
        """The statements that a statement names, and `GONE` if it names something that is not in the project."""
        if any(map(self.gone.in_text, part.texts)):
            yield GONE
        nodes = [*(one.node for one in self.files[part.path] if isinstance(one.node, IMPORTS)), *part.imports]
        bound = {name: key for node in nodes for name, key in self._bound(node, part.path).items()}
        inner = () if isinstance(part.node, IMPORTS) else (self._bound(node, part.path) for node in part.imports)
        used = part.uses.union(*inner)
        yield from (key for name, key in bound.items() if name in used and (key == GONE or key[1]))
        modules = {path for path, name in bound.values() if not name}
        yield from ((path, name) for path in (part.path, *modules) for name in part.words if (path, name) in self.parts)
        places = [part.path, *(f"{folder}/conftest.py" for folder in PurePosixPath(part.path).parents)]
        constants = [one for name in part.uses if part.asks for one in self.parts.get((part.path, name), [])]
        for name in part.fixtures.union(*(one.texts for one in constants)):
            found = (path for path in places if any(one.is_fixture for one in self.parts.get((path, name), [])))
            yield from ((path, name) for path in islice(found, 1))
        for text in (*part.texts, *(text for name, text in self.data.items() if name in part.source)):
            yield from filter(None, map(self._key, re.findall(r"\btests(?:\.\w+)+", text)))

    def _bound(self, node: ast.Import | ast.ImportFrom, path: str) -> dict[str, Key]:
        """The names that an import binds, and what each is in tests or `GONE`; others are left out."""
        found: dict[str, Key] = {}
        parent = f"{module_of(node, path)}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            if key := self._key(f"{parent}{alias.name}"):
                found[alias.asname or alias.name.partition(".")[0]] = key
        return found

    def _key(self, name: str) -> Key | None:
        """What a dotted name is in tests, such as tests.toy.ToyNet, or `GONE`; None for all others."""
        module, _, leaf = name.rpartition(".")
        if self.gone.module(name) or self.gone.module(module):
            return GONE
        if (file := self.template.module(name)) in self.files:
            return str(file), ""
        file = self.template.module(module)
        return (str(file), leaf) if file in self.files else None

    def _automatic(self, part: Part) -> Iterator[Part]:
        """Autouse fixtures and hooks, fixtures that replace those of a folder, and statements that run on import."""
        paths = [f"{folder}/conftest.py" for folder in PurePosixPath(part.path).parents]
        for one in (one for path in (part.path, *paths) for one in self.files.get(path, [])):
            starts = "autouse=True" in one.source or any(name.startswith("pytest_") for name in one.names)
            if starts or (one.path == part.path and (not one.names or self._replaces(one))):
                yield one

    def _replaces(self, part: Part) -> bool:
        """Whether a fixture of a file replaces one of its folders."""
        paths = {f"{folder}/conftest.py" for folder in PurePosixPath(part.path).parents} - {part.path}
        return part.is_fixture and any((path, name) in self.parts for path in paths for name in part.names)


def _parts(path: str, text: str) -> list[Part]:
    lines = text.splitlines()
    found: list[Part] = []
    end = 0
    for node in ast.parse(text).body:
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))]) - 1
        while first > end and lines[first - 1].startswith("#"):
            first -= 1
        last = node.end_lineno or node.lineno
        blank = sum(not line.strip() for line in lines[end:first])
        found.append(Part(path, node, "\n".join(lines[first:last]), blank))
        end = last
    return found


def _joined(parts: list[Part]) -> str:
    """The text of statements, with those imports that they use; ruff sorts these and sets empty lines."""
    used = {name for part in parts if not isinstance(part.node, IMPORTS) for name in part.uses}
    text = ""
    for part in parts:
        source = part.source
        if isinstance(part.node, IMPORTS):
            names = [one for one in part.node.names if (one.asname or one.name.partition(".")[0]) in used]
            if len(names) < len(part.node.names):
                part.node.names = names
                source = ast.unparse(part.node) if names else ""
        text += "\n" * part.blank + f"{source}\n"
    return text.lstrip("\n")
