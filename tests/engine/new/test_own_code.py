"""A project takes along code, data, tests and requirements that were added to a clone."""

import json
import runpy
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src import ROOT
from src.engine.new import pyproject, updating
from src.engine.new.project import COPIED, Choice, Project, overlays, packaged, recipes
from src.engine.new.pyproject import requirements
from src.engine.new.template import Template, commit, commit_of, git, uncommitted
from src.engine.system.errors import InputError
from tests.conftest import Run

RECIPE = "# Own.\nmodel: {class_path: OwnModel}\n"
MODEL = '''"""A model."""

from lightning.pytorch import LightningModule


class OwnModel(LightningModule):
    def train_dataloader(self):
        return []
'''
CODE: dict[str, str | bytes] = {"src/own/__init__.py": '"""Own code."""\n', "src/own/model.py": MODEL}
CODE |= {"configs/own/own.yaml": RECIPE}
TEST = "def test_it() -> None:\n    assert True\n"


@pytest.fixture
def clone(tmp_path: Path) -> Callable[..., Path]:
    """Make a clone whose only code is one's own: by path, in addition to a model and its recipe."""

    def make(files: dict[str, str | bytes]) -> Path:
        shutil.copytree(ROOT / "templates", tmp_path / "clone" / "templates")
        copied = {path: (ROOT / path).read_bytes() for path in (*COPIED, "LICENSE", "src/__init__.py")}
        train = {"src/train.py": '"""Train."""\n', "tests/own/__init__.py": ""}
        for path, content in {**copied, **train, **CODE, **files}.items():
            file = tmp_path / "clone" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / "clone"

    return make


def made(root: Path, **choice: Any) -> dict[str, bytes]:
    return Project(root, Choice("mine", recipes=["own"], parts=[], **choice)).files()


def test_recipes_of_one_name_are_named_by_their_paths(clone: Callable[..., Path]) -> None:
    same = ["configs/own/same.yaml", "configs/other/same.yaml"]
    root = clone(dict.fromkeys(same, RECIPE))
    known = recipes(Template(root))
    assert known == {"own": "configs/own/own.yaml"} | {path: path for path in same}
    assert Project(root, Choice("mine", recipes=[same[1]], parts=[])).recipes == [same[1]]
    with pytest.raises(InputError, match=r"^--recipe same: no such recipe.* configs/other/same\.yaml"):
        Project(root, Choice("mine", recipes=["same"], parts=[]))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution is installed whose module has another name."""
    monkeypatch.setattr(pyproject, "packages_distributions", lambda: {"cv3": ["Open-Vision"], "other": ["other"]})
    pyproject._modules.cache_clear()
    yield
    pyproject._modules.cache_clear()


@pytest.mark.parametrize(
    "requirement",
    [
        "open-vision>=4",
        "Open-Vision",
        "open-vision >=4",
        "open-vision @ git+https://host/vision.git@v1",
        "cv3 (>=4)",
        "open_vision",
    ],
)
def test_what_own_code_imports_stays_a_requirement(requirement: str, installed: None) -> None:
    listed = json.dumps([requirement, "other>=1"])
    text = f"[project]\ndependencies = {listed}\n[project.optional-dependencies]\nown = {listed}\n"
    assert requirements(text, {"cv3"}) == {"": [requirement], "own": [requirement]}


def test_a_package_that_comes_with_another_is_not_required_again() -> None:
    text = (
        '[project]\ndependencies = []\n[project.optional-dependencies]\ntune = ["optuna"]\nloggers = ["sqlalchemy"]\n'
    )
    assert requirements(text, {"optuna", "sqlalchemy"}) == {"tune": ["optuna"]}
    assert requirements(text, {"mlflow"}) == {"loggers": ["sqlalchemy"]}


def test_a_requirement_of_another_name_is_in_the_project(clone: Callable[..., Path], installed: None) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    wanted = "open-vision @ git+https://host/vision.git@v1"
    text = text.replace('\n  "torch>', f'\n  "{wanted}", # a fork\n  "other >=1",\n  "torch>', 1)
    files = made(clone({"pyproject.toml": text, "src/own/model.py": f"import cv3\n{MODEL}"}))
    table = files["pyproject.toml"].decode()
    assert wanted in tomllib.loads(table)["project"]["dependencies"]
    assert f'  "{wanted}", # a fork\n' in table
    assert "other >=1" not in table


@pytest.mark.slow
def test_relative_imports_are_followed(clone: Callable[..., Path]) -> None:
    root = clone(
        {
            "src/own/model.py": f"from . import layers\nfrom .transforms import scale\n{MODEL}",
            "src/own/layers.py": "from .deep.inner import x\n",
            "src/own/transforms.py": "scale = 2\n",
            "src/own/deep/__init__.py": "",
            "src/own/deep/inner.py": "from .. import constants\nfrom ..more import y\n",
            "src/own/constants.py": "y = 1\n",
            "src/own/more.py": "y = 1\n",
            "src/own/unused.py": "z = 1\n",
            "tests/own/test_model.py": "from . import helpers\nfrom .made import made\nfrom .. import shared\n\n\n"
            "def test_it() -> None:\n    assert helpers.one and made and shared.two\n",
            "tests/own/helpers.py": "one = 1\n",
            "tests/own/made.py": "made = 1\nunused = 2\n",
            "tests/__init__.py": "",
            "tests/shared.py": "two = 2\n",
            "tests/own/test_gone.py": f"from .gone import gone\n\n\n{TEST.replace('True', 'gone')}",
            "tests/own/gone.py": "from src.own.unused import z\n\ngone = z\n",
        }
    )
    files = made(root)
    kept = {path for path in files if path.startswith("src/own/")}
    names = ("__init__", "model", "layers", "transforms", "deep/__init__", "deep/inner", "constants", "more")
    assert kept == {f"src/own/{name}.py" for name in names}
    tests = {path for path in files if path.startswith("tests/own/")}
    assert tests == {f"tests/own/{name}.py" for name in ("__init__", "test_model", "helpers", "made")}
    assert "tests/shared.py" in files
    assert files["tests/own/made.py"] == b"made = 1\n"


@pytest.mark.parametrize("model", ["OwnModel", "{class_path: OwnModel}", "src.own.model.OwnModel"])
def test_a_model_that_makes_its_own_loaders_needs_no_data_in_its_recipe(model: str, clone: Callable[..., Path]) -> None:
    recipe = f"# Own.\nmodel: {model}\n"
    over = {
        f"configs/own/over_{name}.yaml": f"# Over.\nmodel: {{{name}: NoLoaders}}\n" for name in ("class_path", "net")
    }
    root = clone({"configs/own/own.yaml": recipe, **over})
    (root / "src/own/other.py").write_text(MODEL.replace("OwnModel", "NoLoaders").replace("train_data", "data"))
    template = Template(root)
    assert recipes(template) == {"own": "configs/own/own.yaml"}
    assert {*over} <= overlays(template)
    files = made(root)
    assert files["configs/default.yaml"].decode() == recipe
    assert "src/own/model.py" in files
    assert b"python -m src.train --config configs/own/own.yaml" in files["README.md"]


LOADERS = "tests.engine.cli.lightning_code.LoadersInside"


@pytest.mark.parametrize("name", [None, "another"])
def test_the_tests_of_a_project_take_a_recipe_without_data_and_with_a_name(
    name: str | None, train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = ROOT / "templates" / "base" / "tests"
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"# Own.\nmodel: {LOADERS}\n{f'name: {name}' if name else ''}\n")
    monkeypatch.setitem(sys.modules, "tests.given", SimpleNamespace(**runpy.run_path(str(tests / "given.py"))))
    runpy.run_path(str(tests / "test_configs.py"))["test_every_recipe_trains_and_tests"](train, tmp_path, str(recipe))


@pytest.mark.parametrize("package", ["src", "tumours"])
def test_data_beside_a_module_come_along_as_they_are(package: str, clone: Callable[..., Path]) -> None:
    data = {
        "mask.npy": b"\x93NUMPY\x01\x00\xff\r\n",
        "words.yaml": b"src: [src, tgt]\n",
        "columns.csv": b"src,tgt\nsrc.a,import src\n",
        "windows.csv": b"a,b\r\n1,2\r\n",
        "bytes.bin": b"\x00\r\x01",
    }
    code = {"src/own/model.py": f"{MODEL}FILES = {[*data]}\n", "src/own/unnamed.npy": b"\xff"}
    files = made(clone({**code, **{f"src/own/{name}": content for name, content in data.items()}}), package=package)
    found = {path.removeprefix(f"{package}/own/"): files[path] for path in files if path.startswith(f"{package}/own/")}
    assert {name: content for name, content in found.items() if not name.endswith(".py")} == data


def test_classes_of_tests_come_along(clone: Callable[..., Path]) -> None:
    text = "class TestModel:\n    def test_it(self) -> None:\n        assert True\n"
    assert made(clone({"tests/own/test_model.py": text}))["tests/own/test_model.py"].decode() == text


HELPERS = """SMALL = "small"
CASES = {}
CASES[SMALL] = 4


def scale(x: int) -> int:
    return x
"""
ASKING = """import warnings

import pytest

from tests.own.cases import CASES

with warnings.catch_warnings():
    from tests.own.helpers import scale

KINDS = ["small", "large"]


@pytest.fixture
def small() -> int:
    return CASES["small"]


@pytest.fixture
def large() -> int:
    return 2


@pytest.mark.parametrize("kind", KINDS)
def test_it(kind: str, request: pytest.FixtureRequest) -> None:
    assert scale(request.getfixturevalue(kind))
"""


def test_what_a_test_uses_in_other_ways_comes_along(clone: Callable[..., Path]) -> None:
    tests = {"tests/own/test_asking.py": ASKING, "tests/own/cases.py": HELPERS, "tests/own/helpers.py": HELPERS}
    files = made(clone(tests))
    assert "SMALL = " in files["tests/own/cases.py"].decode()
    assert "def scale" in files["tests/own/helpers.py"].decode()
    text = files["tests/own/test_asking.py"].decode()
    assert all(f"def {name}" in text for name in ("small", "large", "test_it"))


def test_a_search_without_a_recipe_and_a_page_beside_it_are_passed_over(clone: Callable[..., Path]) -> None:
    root = clone({"configs/tune/README.md": "`a`: b\n", "configs/tune/empty.yaml": "# nothing\n", "src/tune.py": ""})
    made_of_it = Project(root, Choice("mine", recipes=["own"], parts=["tune"])).files()
    assert "configs/tune/README.md" not in made_of_it


OWN = '''columns = ("src", "tgt")
batch = {"src": 1, "tgt": 2}["src"]


def forward(self, src, tgt):
    """Attend to src and tgt."""
    if lang == "src" or "data/src" or batch.get("src"):
        return src / 2
    return self.net(src, tgt=tgt, length=src.shape[1]) + src
'''
TOPS = ("engine", "own", "train")  # modules
MODULES = {
    "import src.own.model\n": "import tumours.own.model\n",
    "import src\n": "import tumours\n",
    "from src import ROOT\n": "from tumours import ROOT\n",
    "from src.own import model\n": "from tumours.own import model\n",
    'cls = "src.own.model.OwnModel"\n': 'cls = "tumours.own.model.OwnModel"\n',
    'file = ROOT / "src" / "own"\n': 'file = ROOT / "tumours" / "own"\n',
    'file = "src/own/mask.npy"\n': 'file = "tumours/own/mask.npy"\n',
    "# python -m src.train\n": "# python -m tumours.train\n",
}


def test_another_package_leaves_columns_and_arguments_of_that_name_alone(clone: Callable[..., Path]) -> None:
    code, expected = OWN + "".join(MODULES), OWN + "".join(MODULES.values())
    assert packaged(code, "tumours", TOPS) == expected
    files = made(clone({"src/own/model.py": MODEL + code, "src/__init__.py": "ROOT = 1\n"}), package="tumours")
    assert files["tumours/own/model.py"].decode() == MODEL + expected
    assert packaged(code, "src", TOPS) == code


def test_another_package_is_that_of_the_engine() -> None:
    for path, old in (("runs/trust.py", '[0] == "src":'), ("system/classes.py", '(ROOT / "src")')):
        text = (ROOT / "src" / "engine" / path).read_text()
        found = packaged(text, "tumours", TOPS, is_engine=True)
        assert old in text
        assert old.replace("src", "tumours") in found
        assert "from tumours" in found
        assert '"src"' not in found


def test_data_of_tests_come_along_only_with_a_test_that_names_them(clone: Callable[..., Path]) -> None:
    text = 'def test_kept() -> None:\n    assert "kept.yaml"\n'
    gone = '\n\ndef test_gone() -> None:\n    assert "gone.yaml", "src.own.unused"\n'
    root = clone(
        {
            "src/own/unused.py": "z = 1\n",
            "tests/own/test_model.py": text + gone,
            "tests/own/kept.yaml": "a: tests.helper.Kept\n",
            "tests/own/gone.yaml": "a: tests.helper.Gone\n",
            "tests/helper.py": "class Kept:\n    pass\n\n\nclass Gone:\n    pass\n",
        }
    )
    files = made(root)
    assert files["tests/own/test_model.py"].decode() == text
    assert "tests/own/kept.yaml" in files
    assert "tests/own/gone.yaml" not in files
    assert files["tests/helper.py"].decode() == "class Kept:\n    pass\n"


@pytest.mark.slow
def test_a_kind_that_only_trains_has_no_tests_of_the_engine() -> None:
    tests = Project(ROOT, Choice("mine", "classification", parts=[])).tests
    assert "tests/example/test_example.py" in tests
    assert "tests/toy.yaml" not in tests
    assert [path for path in tests if path.startswith("tests/engine")] == []


# Updates


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    """A clone, and a project that notes its commit."""
    for name in ("clone", "mine"):
        folder = tmp_path / name
        folder.mkdir()
        git(folder, "init", "--quiet")
        noted = f'commit = "{commit_of(tmp_path / "clone")}"\nname = "mine"\npackage = "src"\nkind = ""\n'
        text = f"[tool.lightning-starter]\n{noted}recipes = []\nwith = []\n" if name == "mine" else ""
        (folder / "pyproject.toml").write_text(text)
        git(folder, "add", "--all")
        commit(folder, "All", "Ada")
    return tmp_path / "clone", tmp_path / "mine"


def test_an_update_from_a_clone_with_changes_is_refused(both: tuple[Path, Path]) -> None:
    root, project = both
    (root / "inside").mkdir()
    git(root / "inside", "init", "--quiet")  # a project is not of the clone
    assert uncommitted(root) == ""
    (root / "new.py").touch()
    with pytest.raises(InputError, match=r"^--update .*mine: .*clone has changes that are not committed; commit them"):
        updating.update(root, project)
