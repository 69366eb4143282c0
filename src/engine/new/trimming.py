"""Tests of a new project: those of this template whose subjects are all there."""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from src.engine.new.template import Template, texts

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
NODES = FUNCTIONS | ast.ClassDef
IMPORTS = ast.Import | ast.ImportFrom
WORD = re.compile(r"\w+")
TELLING = re.compile(r"[a-z][A-Z]|^[A-Z]{2}")  # a class name that is no common word


class Gone:
    """Finds references to what a project leaves out of this template.

    Args:
        template: the template.
        kept: the files that stay.
    """

    def __init__(self, template: Template, kept: Iterable[str]) -> None:
        self.template = template
        self.kept = set(kept)
        dropped = template.source.keys() - self.kept
        self.classes = {name for name, path in template.classes.items() if path in dropped and TELLING.search(name)}
        names = {PurePosixPath(path).name for path in dropped} - {PurePosixPath(path).name for path in self.kept}
        self.names = {name for name in names if "." in name[1:]}
        stems = {PurePosixPath(path).stem for path in dropped if path.startswith("configs/")}
        kept_stems = {PurePosixPath(path).stem for path in self.kept}
        self.stems = {stem for stem in stems - kept_stems if "_" in stem or stem.endswith("2")}
        self.options = _options(template, dropped) - _options(template, self.kept)

    def module(self, name: str) -> bool:
        """Whether a module is gone, or the script with this name."""
        file = self.template.module(name) or next(
            (one for one in (f"scripts/{name}.py", f"benchmarks/{name}.py") if one in self.template.source), None
        )
        return file is not None and file not in self.kept

    @staticmethod
    def _has(paths: Iterable[str], path: str) -> bool:
        return path in paths or any(one.startswith(f"{path}/") for one in paths)

    def find(self, text: str) -> str | None:
        """The first name in a text that is gone, or None."""
        for path in re.findall(r"\b(?:src|configs|tests|docs|scripts|benchmarks)/[\w./-]*\w", text):
            is_known = self._has(self.template.source, path)
            if is_known and not self._has(self.kept, path):
                return str(path)
        for name in re.findall(r"\b(?:src|tests)(?:\.\w+)+", text):
            parts = name.split(".")
            known = next(
                (one for n in range(len(parts), 0, -1) if self.template.module(one := ".".join(parts[:n]))), ""
            )
            if self.module(known) or (known in ("src", "tests") and len(parts) > 1):
                return str(name)
        for option in re.findall(r"--[a-z][\w.]*", text):
            if option in self.options:
                return str(option)
        words = set(WORD.findall(text))
        gone = sorted(words & (self.classes | self.stems)) or sorted({text} & self.names)
        return gone[0] if gone else None


def _options(template: Template, paths: Iterable[str]) -> set[str]:
    """The options that parts of the engine add to `src.train`."""
    found = set[str]()
    for path in paths:
        if path.startswith("src/engine/parts/"):
            found |= set(re.findall(r'add_argument\(\s*"(--[a-z_]+)"', template.text(path)))
    return found


@dataclass
class Part:
    """A statement at the top of a test file with the comments before it.

    Args:
        node: the statement.
        source: its text.
        blank: empty lines before it.
        names: names that it defines.
        uses: names that it reads.
        fixtures: names of its arguments, and of fixtures that it asks for.
        words: all words of its text.
    """

    node: ast.stmt
    source: str
    blank: int
    names: set[str] = field(default_factory=set)
    uses: set[str] = field(default_factory=set)
    fixtures: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)


def trimmed_tests(template: Template, gone: Gone, paths: Iterable[str], data: Iterable[str]) -> dict[str, str]:
    """Content of the test files that remain, by path.

    A test remains if all it names is in the project, a helper or a fixture if what remains uses it.

    Args:
        template: the template.
        gone: what the project leaves out; `kept` gets the files that remain.
        paths: Python files of tests.
        data: content of other files that name helpers, such as recipes of tests.
    """
    files = {path: _parts(template.text(path)) for path in paths}
    gone.kept |= files.keys()
    fixtures = {node.name for parts in files.values() for node in _fixtures(parts)}
    count = 0
    while count != (count := sum(map(len, files.values()))):  # a file that goes takes those with it that import it
        lost = fixtures - {node.name for parts in files.values() for node in _fixtures(parts)}
        for parts in files.values():
            _remove_gone(template, gone, parts, files, lost)
        files = {path: parts for path, parts in files.items() if any(part.names for part in parts)}
        gone.kept -= set(paths) - files.keys()
    _remove_unused(template, files, data)
    return {path: _join(parts) for path, parts in files.items() if parts}


def _parts(text: str) -> list[Part]:
    lines = text.splitlines()
    found: list[Part] = []
    end = 0
    for node in ast.parse(text).body:
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))]) - 1
        while first > end and lines[first - 1].startswith("#"):
            first -= 1
        last = node.end_lineno or node.lineno
        source = "\n".join(lines[first:last])
        blank = sum(not line.strip() for line in lines[end:first])
        part = Part(node, source, blank, words=set(WORD.findall(source)))
        local = {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
        for one in ast.walk(node):
            if isinstance(one, ast.Name) and (one.id not in local or not isinstance(node, FUNCTIONS)):
                part.uses.add(one.id)
            elif isinstance(one, ast.arg):
                part.fixtures.add(one.arg)
            for annotation in (getattr(one, "annotation", None), getattr(one, "returns", None)):
                if isinstance(annotation, ast.Constant):
                    part.uses |= set(WORD.findall(str(annotation.value)))
        if isinstance(node, FUNCTIONS):
            part.uses -= part.fixtures
        if isinstance(node, NODES):
            part.names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            part.names |= {one.id for target in targets for one in ast.walk(target) if _is_defined(target, one)}
        if "getfixturevalue" in source:
            part.fixtures |= set(texts(node))
        found.append(part)
        end = last
    return found


def _is_defined(target: ast.expr, one: ast.AST) -> bool:
    """Whether a name in the target of an assignment gets a value, or an item."""
    is_item = isinstance(target, ast.Subscript) and one is target.value
    return isinstance(one, ast.Name) and (is_item or isinstance(one.ctx, ast.Store))


def _fixtures(parts: list[Part]) -> list[ast.FunctionDef]:
    return [part.node for part in parts if isinstance(part.node, ast.FunctionDef) and "@pytest.fixture" in part.source]


def _remove_gone(
    template: Template, gone: Gone, parts: list[Part], files: dict[str, list[Part]], lost: set[str]
) -> None:
    """Remove what names something that is gone, until nothing more does."""
    removed = set(lost)
    for part in parts:
        if isinstance(part.node, IMPORTS):
            removed |= _gone_imports(template, gone, part, files)
    while True:
        bad = [part for part in parts if _is_gone(part, gone, removed)]
        if not bad:
            return
        for part in bad:
            parts.remove(part)
            removed |= part.names - {name for one in parts for name in one.names}
            gone.classes |= {
                name for name in part.names if isinstance(part.node, ast.ClassDef) and TELLING.search(name)
            }


def _gone_imports(template: Template, gone: Gone, part: Part, files: dict[str, list[Part]]) -> set[str]:
    """The names that an import cannot bind; they are removed from it."""
    node, lost = part.node, set[str]()
    if isinstance(node, ast.Import):
        lost = {alias.asname or alias.name.partition(".")[0] for alias in node.names if gone.module(alias.name)}
    elif isinstance(node, ast.ImportFrom) and node.module:
        file = template.module(node.module)
        for alias in node.names:
            there = file not in files or any(alias.name in one.names for one in files[str(file)])
            if gone.module(f"{node.module}.{alias.name}"):
                there = False
            elif template.module(f"{node.module}.{alias.name}"):
                there = True
            if gone.module(node.module) or not there:
                lost.add(alias.asname or alias.name)
    return lost


def _is_gone(part: Part, gone: Gone, removed: set[str]) -> bool:
    if isinstance(part.node, IMPORTS):
        return False
    is_docstring = isinstance(part.node, ast.Expr) and isinstance(part.node.value, ast.Constant)
    return not is_docstring and bool((part.uses | part.fixtures) & removed or any(map(gone.find, texts(part.node))))


def _remove_unused(template: Template, files: dict[str, list[Part]], data: Iterable[str]) -> None:
    """Remove helpers, fixtures and imports that no test uses, and files of which nothing is left.

    Args:
        template: the template.
        files: the statements of each file; changed.
        data: content of other files that name helpers, such as recipes of tests.
    """
    defined: dict[tuple[str, str], list[Part]] = {}
    for path, parts in files.items():
        for part, name in ((part, name) for part in parts for name in part.names):
            defined.setdefault((path, name), []).append(part)
    found: dict[int, Part] = {}
    left = [(path, name) for path, name in defined if name.startswith("test_")]
    left += [one for text in data for one in _dotted(template, text)]
    fixtures = [node.name for parts in files.values() for node in _fixtures(parts)]
    while left:
        path, name = left.pop()
        if not name:  # the whole file
            left += [(path, one) for part in files.get(path, []) for one in part.names]
        for part in defined.pop((path, name), []):
            found[id(part)] = part
            left += _used(template, files, path, part)
            # A fixture that replaces another one.
            left += [(path, one.name) for one in _fixtures(files[path]) if fixtures.count(one.name) > 1]
    for path, parts in files.items():
        stays = [part for part in parts if not part.names or id(part) in found]
        files[path] = _with_used_imports(stays) if any(part.names for part in stays) else []


def _used(template: Template, files: dict[str, list[Part]], path: str, part: Part) -> list[tuple[str, str]]:
    """Files and names of what a statement in a file of tests may use."""
    used = [(path, word) for word in part.words] + _dotted(template, part.source)
    used += [(other, name) for name in part.fixtures for other in files if other.endswith("conftest.py")]
    for node in (one for part in files[path] for one in ast.walk(part.node) if isinstance(one, ast.ImportFrom)):
        for alias in node.names:
            if (file := template.module(f"{node.module}.{alias.name}")) in files:  # a module: any of its names
                used += [(str(file), word) for word in part.words]
            elif (alias.asname or alias.name) in part.words and (file := template.module(str(node.module))) in files:
                used.append((str(file), alias.name))
    for folder in PurePosixPath(path).parents:  # what pytest uses by itself
        conftest = f"{folder}/conftest.py"
        used += [(conftest, name) for one in files.get(conftest, []) if _is_automatic(one) for name in one.names]
    return used


def _is_automatic(part: Part) -> bool:
    return "autouse=True" in part.source or any(name.startswith("pytest_") for name in part.names)


def _dotted(template: Template, text: str) -> list[tuple[str, str]]:
    """Files and names of what a text names by its dotted path, such as tests.toy.ToyNet."""
    found = re.findall(r"\btests(?:\.\w+)+", text)
    whole = [(file, "") for name in found if (file := template.module(name))]
    parts = [name.rpartition(".") for name in found]
    return whole + [(file, name) for module, _, name in parts if (file := template.module(module))]


def _with_used_imports(parts: list[Part]) -> list[Part]:
    used = {name for part in parts if not isinstance(part.node, IMPORTS) for name in part.uses}
    found = []
    blank = 0
    for part in parts:
        blank = part.blank = max(blank, part.blank)
        if isinstance(part.node, IMPORTS):
            names = [one for one in part.node.names if (one.asname or one.name.partition(".")[0]) in used]
            if not names:
                continue
            if len(names) < len(part.node.names):
                part.node.names = names
                part.source = _import_line(part.node)
        blank = 0
        found.append(part)
    return found


def _import_line(node: IMPORTS) -> str:
    line = ast.unparse(node)
    if len(line) <= 120:
        return line
    head, _, names = line.partition(" import ")
    return f"{head} import (\n" + "".join(f"    {name},\n" for name in names.split(", ")) + ")"


def _join(parts: list[Part]) -> str:
    lines: list[str] = []
    for number, part in enumerate(parts):
        around = isinstance(part.node, NODES) or (number and isinstance(parts[number - 1].node, NODES))
        after_imports = number and isinstance(parts[number - 1].node, IMPORTS) and not isinstance(part.node, IMPORTS)
        blank = 2 if around else max(part.blank, int(after_imports))
        lines += [""] * (blank if number else 0) + [part.source]
    return "\n".join(lines) + "\n"
