"""Selects the tests of a new project: those whose code it has."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from src.engine.new.template import Template, module_of

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
IMPORTS = ast.Import | ast.ImportFrom
WORD = re.compile(r"\w+")
TELLING = re.compile(r"[a-z][A-Z]|^[A-Z]{2}")  # a class name that is no common word
FOLDERS = r"\b(?:src|configs|tests|docs|scripts|benchmarks)/[\w./-]*\w"

Key = tuple[str, str]  # a file of tests and a name in it; "": all of it


class Gone:
    """Finds references to what a project leaves out of this template.

    Args:
        template: the template.
        kept: the files that stay.
    """

    def __init__(self, template: Template, kept: Iterable[str]) -> None:
        self.template = template
        self.kept = {*kept}
        dropped = template.source.keys() - self.kept
        self.folders = {str(folder) for path in self.kept for folder in PurePosixPath(path).parents}
        self.files = {PurePosixPath(path).name for path in dropped} - {PurePosixPath(path).name for path in self.kept}
        self.dropped = dropped | {str(folder) for path in dropped for folder in PurePosixPath(path).parents}
        """The files that go, and their folders."""
        self.names = {name for name, path in template.classes.items() if path in dropped and TELLING.search(name)}
        stems = {path: PurePosixPath(path).stem for path in template.source if path.startswith("configs/")}
        gone = {stem for path, stem in stems.items() if path in dropped and re.search(r"_|\d", stem)}
        self.names |= gone - {stem for path, stem in stems.items() if path in self.kept}
        self.options = self._options(dropped) - self._options(self.kept)
        self.marks = self._marks(dropped)

    def _options(self, paths: Iterable[str]) -> set[str]:
        """The options that parts of the engine add to `src.train`."""
        texts = [self.template.text(path) for path in paths if path.startswith("src/engine/parts/")]
        return {option for text in texts for option in re.findall(r'add_argument\(\s*"(--[a-z_]+)"', text)}

    def _marks(self, dropped: Iterable[str]) -> set[str]:
        """Names of files and of values for TensorBoard that only the dropped parts of the engine write."""
        parts = [path for path in dropped if path.startswith(("src/engine/parts/", "src/engine/tensorboard/"))]
        texts = {text for path in parts for text in self.template.texts(path)}
        others = [self.template.text(path) for path in self.kept if path.startswith("src/")]
        found = {text for text in texts if len(text) > 6 and re.fullmatch(r"[\w ]*[/.][\w /]+", text)}
        return {text for text in found if not any(text in other for other in others)}

    def module(self, name: str) -> bool:
        """Whether a module, or a script with this name, is in the template and not in the project."""
        scripts = (f"scripts/{name}.py", f"benchmarks/{name}.py")
        file = self.template.module(name) or next((one for one in scripts if one in self.template.source), None)
        return file is not None and file not in self.kept

    def find(self, text: str) -> str | None:
        """The first name in a text that is gone, or None."""
        for path in re.findall(FOLDERS, text):
            if path in self.dropped and path not in self.folders:
                return str(path)
        for name in re.findall(r"\b(?:src|tests)(?:\.\w+)+", text):
            parts = name.split(".")
            modules = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
            found = next((one for one in modules if self.template.module(one)), "src")
            if self.module(found) or found in ("src", "tests"):
                return str(name)
        if text in self.files and "." in text:
            return text
        options = {*re.findall(r"--[a-z][\w.]*", text)} & self.options
        options |= {mark for mark in self.marks if mark in text}
        return next(iter(sorted(options | {*WORD.findall(text)} & self.names)), None)


class Part:
    """A statement at the top of a test file, with the comments before it.

    Args:
        path: the file.
        node: the statement.
        source: its text.
        blank: empty lines before it.
    """

    def __init__(self, path: str, node: ast.stmt, source: str, blank: int) -> None:
        self.path = path
        self.node = node
        self.source = source
        self.blank = blank
        nodes = list(ast.walk(node))
        self.names = {node.name} if isinstance(node, FUNCTIONS | ast.ClassDef) else {*_assigned(node)}
        self.is_item = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript)
        self.is_fixture = isinstance(node, FUNCTIONS) and "@pytest.fixture" in source
        self.texts = [one.value for one in nodes if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        self.imports = [one for one in nodes if isinstance(one, IMPORTS)]
        arguments = {one.arg for one in nodes if isinstance(one, ast.arg)}
        self.fixtures = arguments
        self.asks = re.search("getfixturevalue|usefixtures", source) is not None  # for fixtures by name
        stored = {one.id for one in nodes if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
        local = arguments | stored if isinstance(node, FUNCTIONS) else set()
        self.uses = {one.id for one in nodes if isinstance(one, ast.Name)} - local
        types = [one for each in nodes for name in ("annotation", "returns") if (one := getattr(each, name, None))]
        quoted = (str(one.value) for each in types for one in ast.walk(each) if isinstance(one, ast.Constant))
        self.uses |= {word for text in quoted for word in WORD.findall(text)}
        self.attributes = {one.attr for one in nodes if isinstance(one, ast.Attribute)}
        self.told = {word for text in self.texts for word in WORD.findall(text) if TELLING.search(word)}


def _assigned(node: ast.stmt) -> Iterator[str]:
    """Names that a statement assigns, or of which it sets an item."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        owner = target.value if isinstance(target, ast.Subscript) else target
        yield from (one.id for one in (ast.walk(owner) if owner is target else [owner]) if isinstance(one, ast.Name))


class Suite:
    """Files of tests, and what each statement in them needs.

    Args:
        template: the template.
        gone: what the project leaves out.
        paths: Python files of tests.
    """

    def __init__(self, template: Template, gone: Gone, paths: Iterable[str]) -> None:
        self.template = template
        self.gone = gone
        self.files = {path: _parts(path, template.text(path)) for path in paths}
        self.parts: dict[Key, list[Part]] = {}
        for part in (part for parts in self.files.values() for part in parts):
            for name in part.names:
                self.parts.setdefault((part.path, name), []).append(part)
        self.needs = {id(part): set(self._needs(part)) for parts in self.files.values() for part in parts}

    def trimmed(self, data: Mapping[str, str]) -> dict[str, str]:
        """Content of the files that remain: tests that lack nothing, and what these use.

        Args:
            data: other files that name helpers, such as recipes of tests: content by file name.
        """
        parts = [part for parts in self.files.values() for part in parts]
        lacking = {id(part) for part in parts if self._lacks(part)}
        for part in (one for one in parts if id(one) in lacking and self._replaces(one)):
            lacking |= {id(one) for one in self.files[part.path]}  # they may use what it replaces
        while more := {id(part) for part in parts if id(part) not in lacking and self._needs_any(part, lacking)}:
            lacking |= more
        kept = set[int]()
        left = [part for part in parts if any(name.startswith(("test_", "Test")) for name in part.names)]
        while left:
            part = left.pop()
            if id(part) not in kept | lacking:
                kept.add(id(part))
                left += [one for key in self.needs[id(part)] for one in self._found(key)]
                left += [one for one in self._automatic(part) if id(one) not in kept]
                named = (key for name, text in data.items() if name in part.source for key in self._dotted(text))
                left += [one for key in named for one in self.parts.get(key, [])]
                left += [one for one in self.files[part.path] if not one.names]  # what runs on import
        found = {}
        for path, parts in self.files.items():
            stays = [part for part in parts if id(part) in kept or (not part.names and id(part) not in lacking)]
            if any(part.names for part in stays):
                found[path] = _join(_with_used_imports(stays))
        return found

    def _found(self, key: Key) -> list[Part]:
        path, name = key
        return self.parts.get(key, []) if name else self.files.get(path, [])

    def _needs_any(self, part: Part, lacking: set[int]) -> bool:
        for path, name in self.needs[id(part)]:
            gone = [id(one) in lacking for one in self._found((path, name)) if not name or not one.is_item]
            if any(gone) if name else all(gone):
                return True
        return False

    def _lacks(self, part: Part) -> bool:
        """Whether a statement names something that is not in the project."""
        if isinstance(part.node, IMPORTS) or part.source.startswith('"""'):
            return False
        return any(map(self.gone.find, part.texts)) or ("", "") in self.needs[id(part)]

    def _needs(self, part: Part) -> Iterator[Key]:
        """The statements that a statement needs; `("", "")` for what is not in the project."""
        if isinstance(part.node, IMPORTS):
            return
        nodes = [one.node for one in self.files[part.path] if isinstance(one.node, IMPORTS)]
        inner = {name: key for node in part.imports for name, key in self._bound(node, part.path).items()}
        imported = {name: key for node in nodes for name, key in self._bound(node, part.path).items()} | inner
        used = {key for name, key in imported.items() if name in part.uses or name in inner}
        yield from (key for key in used if key[1] or not key[0])
        yield from ((part.path, name) for name in part.uses if (part.path, name) in self.parts)
        folders = [str(folder) for folder in PurePosixPath(part.path).parents]
        files = {part.path, *(path for path, name in imported.values() if not name)}  # this one, and modules
        helpers = {path for path in self.files if str(PurePosixPath(path).parent) in folders and "/test_" not in path}
        for name in (part.attributes | part.told) - part.names:
            found = files | helpers if name in part.told else files
            yield from ((path, name) for path in found if (path, name) in self.parts)
        asked = [one for name in part.uses for one in self.parts.get((part.path, name), [])] if part.asks else []
        for name in part.fixtures.union(*(one.texts for one in (part, *asked) if part.asks)):
            for path in (part.path, *(f"{folder}/conftest.py" for folder in folders)):
                if any(one.is_fixture for one in self.parts.get((path, name), [])) and name not in part.names:
                    yield path, name
                    break
        yield from (key for text in part.texts for key in self._dotted(text))

    def _bound(self, node: ast.stmt, path: str) -> dict[str, Key]:
        """The names that an import binds, and what each is: `("", "")` if it is not in the project."""
        found: dict[str, Key] = {}
        for alias in node.names if isinstance(node, IMPORTS) else ():
            module = module_of(node, path) if isinstance(node, ast.ImportFrom) else alias.name
            whole = f"{module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            name = alias.asname or (alias.name if isinstance(node, ast.ImportFrom) else alias.name.partition(".")[0])
            if self.gone.module(module) or self.gone.module(whole):
                found[name] = ("", "")
            elif (inner := self.template.module(whole)) in self.files:
                found[name] = (str(inner), "")
            elif (file := self.template.module(module)) in self.files:
                found[name] = (str(file), alias.name)
        return found

    def _dotted(self, text: str) -> Iterator[Key]:
        """What a text names by its dotted path, such as tests.toy.ToyNet."""
        for name in re.findall(r"\btests(?:\.\w+)+", text):
            module, _, leaf = name.rpartition(".")
            if (file := self.template.module(name)) in self.files:
                yield str(file), ""
            elif (file := self.template.module(module)) in self.files and (str(file), leaf) in self.parts:
                yield str(file), leaf

    def _automatic(self, part: Part) -> Iterator[Part]:
        """What pytest uses by itself with a test in a file, and fixtures there that replace others."""
        paths = [f"{folder}/conftest.py" for folder in PurePosixPath(part.path).parents]
        for one in (one for path in (part.path, *paths) for one in self.files.get(path, [])):
            starts = any(name.startswith("pytest_") for name in one.names)
            if starts or "autouse=True" in one.source or (one.path == part.path and self._replaces(one)):
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


def _with_used_imports(parts: list[Part]) -> list[Part]:
    used = {name for part in parts if not isinstance(part.node, IMPORTS) for name in part.uses}
    found: list[Part] = []
    blank = 0
    for part in parts:
        blank = part.blank = max(blank, part.blank)
        if isinstance(part.node, IMPORTS):
            names = [one for one in part.node.names if (one.asname or one.name.partition(".")[0]) in used]
            if not names:
                continue
            if len(names) < len(part.node.names):
                part.node.names = names
                part.source = _import_lines(part.node)
        blank = 0
        found.append(part)
    return found


def _import_lines(node: ast.stmt) -> str:
    line = ast.unparse(node)
    if len(line) <= 120:
        return line
    head, _, names = line.partition(" import ")
    return f"{head} import (\n" + "".join(f"    {name},\n" for name in names.split(", ")) + ")"


def _join(parts: list[Part]) -> str:
    lines: list[str] = []
    before: Part | None = None
    for part in parts:
        blocks = [one is not None and isinstance(one.node, FUNCTIONS | ast.ClassDef) for one in (before, part)]
        is_first = before is not None and isinstance(before.node, IMPORTS) and not isinstance(part.node, IMPORTS)
        blank = 2 if any(blocks) else 1 if is_first else part.blank
        lines += [*[""] * (blank if before else 0), part.source]
        before = part
    return "\n".join(lines) + "\n"
