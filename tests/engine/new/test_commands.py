"""The commands and the search that a new project shows fit its recipe."""

import re
from pathlib import Path

import pytest
import yaml

from src import ROOT
from src.engine.cli.class_names import resolve_class
from src.engine.new.project import Choice, Project, default_parts
from src.engine.system.classes import comment, import_class
from tests.conftest import copy_of_the_repository
from tests.engine.new.projects import DOMAIN, OTHER, RECIPES


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_commands_of_a_recipe_fit_it(recipe: str) -> None:
    readme = Project(ROOT, Choice("mine", recipes=[recipe], parts=default_parts(ROOT, [recipe]))).files()["README.md"]
    tree = yaml.safe_load((ROOT / RECIPES[recipe]).read_text())
    model = tree["model"]["class_path"] if isinstance(tree["model"], dict) else tree["model"]
    writes = "generate" in vars(import_class(resolve_class(model, "model")))
    assert ("python -m src.generate" in readme.decode()) == writes
    assert ("python -m src.predict" in readme.decode()) != writes
    assert ("--trainer.max_steps" in readme.decode()) == ("max_steps" in tree["trainer"])
    longer = re.findall(r"--max_epochs (\d+) --(?:model|optimizer)", readme.decode())
    assert "max_steps" in tree["trainer"] or longer == [str(2 * tree["trainer"]["max_epochs"])]
    given = comment((ROOT / RECIPES[recipe]).read_text()).count("--data.path") > 0
    for row in re.findall(r"`(python -m src\.train[^`]*|make train[^`]*)`", readme.decode()):
        starts = not re.search(r"--(help|optimizer\.help|ckpt_path)|logs/| test$", row)
        assert not (given and starts) or "--data.path path/to/files" in row
    assert "{{" not in readme.decode()


def test_no_search_has_the_name_of_a_recipe_and_so_its_folder_of_runs() -> None:
    choices = [Choice("mine", kind, parts=["tune"]) for kind in ("regression", "lightning")]
    for files in (
        *(Project(ROOT, choice).files() for choice in choices),
        [str(one) for one in ROOT.glob("configs/**/*")],
    ):
        paths = [Path(path) for path in files if "configs/" in path and path.endswith(".yaml")]
        searches = {path.stem for path in paths if path.parent.name == "tune"}
        assert searches
        assert not searches & {path.stem for path in paths if path.parent.name != "tune"}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_search_of_a_recipe_knows_its_metric(recipe: str) -> None:
    files = Project(ROOT, Choice("mine", recipes=[recipe], parts=["tune"])).files()
    search, tree = (yaml.safe_load(files[f"configs/{name}.yaml"]) for name in ("tune/search", "default"))
    assert (
        ("metric" in search) == ("direction" in search) == ((tree.get("checkpoint") or {}).get("monitor", "") is None)
    )
    assert ("options" in search) == (recipe == "image_folder")


@pytest.mark.slow
def test_a_kind_without_an_optimizer_has_its_rate_in_the_model() -> None:
    for kind, flag in (("lightning", "--model.lr 1e-3"), ("regression", "--optimizer.lr 1e-3")):
        assert f"--max_epochs 40 {flag}`" in Project(ROOT, Choice("mine", kind)).files()["README.md"].decode()


@pytest.mark.slow
def test_the_default_recipe_is_the_default_of_a_project_that_has_it() -> None:
    chosen = [OTHER, *({"default"} & {*RECIPES})]
    files = Project(ROOT, Choice("mine", recipes=chosen)).files()
    default = yaml.safe_load(files["configs/default.yaml"])
    assert default == yaml.safe_load((ROOT / RECIPES[chosen[-1]]).read_text())
    assert ("--trainer.max_steps" in files["README.md"].decode()) == ("max_steps" in default["trainer"])
    assert comment(files["configs/default.yaml"].decode()) in files["README.md"].decode()


@pytest.mark.slow
def test_a_recipe_needs_neither_trainer_nor_optimizer(tmp_path: Path) -> None:
    copy = copy_of_the_repository(tmp_path / "copy")
    tree = yaml.safe_load((copy / RECIPES[OTHER]).read_text())
    own = {name: tree[name] for name in ("model", "data")}
    (copy / "configs" / DOMAIN / "own_one.yaml").write_text(f"# A recipe (--data.path FOLDER).\n{yaml.safe_dump(own)}")
    readme = Project(copy, Choice("mine", recipes=["own_one"])).files()["README.md"].decode()
    assert "python -m src.train --data.path path/to/files --max_epochs 20 --optimizer.lr 1e-3" in readme


def test_what_an_own_recipe_imports_is_installed_before_it_trains(tmp_path: Path) -> None:
    copy = copy_of_the_repository(tmp_path / "copy")
    head = "import sklearn.datasets\nfrom lightning.pytorch import LightningDataModule\n"
    own = f"{head}\n\nclass Iris(LightningDataModule):\n    x = sklearn.datasets\n"
    (copy / "src" / "own").mkdir()
    (copy / "src" / "own" / "__init__.py").write_text('"""Own data."""\n')
    (copy / "src" / "own" / "iris.py").write_text(own)
    (copy / "configs" / "own").mkdir()
    recipe = "# Iris.\nmodel: {class_path: Regressor}\ndata: {class_path: Iris}\n"
    (copy / "configs" / "own" / "iris.yaml").write_text(recipe)
    makefile = Project(copy, Choice("mine", recipes=["iris"])).files()["Makefile"].decode()
    assert re.findall(r"--editable '\.(?:\[(.*)\])?'\n", makefile)[0] == "tune"
