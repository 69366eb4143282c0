"""`--help` fits a screen, and `--list` names what is there; neither imports torch."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from src import ROOT, train
from src.engine.cli import config
from src.engine.cli.cli import StarterCLI
from src.engine.cli.usage import SHORT_FLAGS
from src.engine.parts import overview
from src.engine.system import classes
from src.engine.system.classes import import_class, project_classes
from tests.conftest import program
from tests.toy import RECIPE

COMMANDS = sorted(path.stem for path in (ROOT / "src").glob("[!_]*.py"))
SCREEN = 50  # lines


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project."""
    for module in (overview, classes):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    for cached in (classes._project_bases, classes.project_classes):
        cached.cache_clear()
        monkeypatch.setattr(classes, cached.__name__, cached)
    yield tmp_path
    for cached in (classes._project_bases, classes.project_classes):
        cached.cache_clear()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_fits_a_screen(name: str) -> None:
    done = program("--help", module=f"src.{name}", COLUMNS="100")
    assert done.returncode == 0
    assert 3 < len(done.stdout.splitlines()) <= SCREEN
    assert "python -m src" in done.stdout


def test_the_help_names_every_own_option_and_the_way_to_all_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert overview.show(["fit", "--config", RECIPE, "--help"])
    short = capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        StarterCLI(["fit", f"--config={RECIPE}", "--help_all"], time.perf_counter())
    assert stop.value.code == 0
    long = capsys.readouterr().out
    assert "--help_all" in short
    for name in SHORT_FLAGS:
        assert f"--{name}" in short
        assert re.search(rf"^  --trainer\.{name}\b", long, re.MULTILINE)
    plain = set(re.findall(r"^  (?:-\w[^-]*)?(--[a-z_]+)", long, re.MULTILINE)) - {"--trainer"}
    assert {"--ckpt_path", "--retries", "--compile", "--quiet"} <= plain
    assert [name for name in plain if name not in short] == []
    # Each option of the short help exists.
    assert set(re.findall(r"^  (--\w+)", short, re.MULTILINE)) - {"--list"} <= {*plain, "--model", "--data"} | set(
        re.findall(r"(--\w+)", long)
    )


def test_a_mistyped_list_is_recognized(error_of: Callable[..., str]) -> None:
    assert error_of("--lists") == "--lists needs a value, did you mean --list?"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_a_project_without_this_part_prints_all_options(
    flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "find_part", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["train", "test", f"--config={RECIPE}", flag])
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == 0
    assert re.search(r"^  --trainer\.max_epochs\b", capsys.readouterr().out, re.MULTILINE)


def test_a_list_has_one_line_for_each_class_and_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        project / "src/own/parts.py",
        '''
import does_not_exist
from torch import nn

class Layer(nn.Module):
    """A layer."""
    def __init__(self, width): ...

class DigitNet(nn.Sequential):
    """Two layers,
    fully connected.

    Args: none."""

class OddLoss(nn.Module):
    """A loss."""

class OwnData(LightningDataModule):
    """Digits."""

class Whole(LightningModule):
    """Makes its own loaders."""
    def train_dataloader(self): ...
''',
    )
    write(
        project / "configs/own/pictures.yaml",
        "# Pictures (Wu et al. 2020) by\n# two layers. 98 %.\nmodel: Task\ndata: OwnData\n",
    )
    write(project / "configs/whole.yaml", "model: Whole\n")
    write(project / "configs/debug/short.yaml", "# Overlay: short.\ntrainer: {max_epochs: 1}\n")
    write(project / "configs/tune/width.yaml", "# Searches widths.\nspace: {model.width: {int: [1, 2]}}\n")
    assert overview.show(["--list"])
    shown = capsys.readouterr().out
    sections = {
        block.splitlines()[0].partition(":")[0]: block.splitlines()[1:] for block in shown.strip().split("\n\n")
    }
    found = {title: [tuple(re.split(r"  +", line.strip())) for line in lines] for title, lines in sections.items()}
    assert found == {
        "Recipes": [("configs/own/pictures.yaml", "Pictures (Wu et al. 2020) by two layers."), ("configs/whole.yaml",)],
        "Networks": [("DigitNet", "Two layers, fully connected.")],
        "Tasks": [("Whole", "Makes its own loaders.")],
        "DataModules": [("OwnData", "Digits.")],
        "Overlays": [("configs/debug/short.yaml", "Overlay: short.")],
        "Searches": [("configs/tune/width.yaml", "Searches widths.")],
    }


def test_on_a_terminal_each_class_has_one_line_that_fits(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("One", "Two")
    nets = [f'class {name}(nn.Module):\n    """A network of {"many " * 20}layers."""\n' for name in names]
    write(project / "src/own/nets.py", "".join(nets))
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    overview.show(["--list"])
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line] == ["One", "Two"]
    assert all(len(line) == 60 and line.endswith(" ...") for line in lines if line)


def test_a_list_does_not_import_torch() -> None:
    code = (
        "import sys; sys.argv = ['train', '--list']; import src.train; src.train.main(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


@pytest.mark.slow
def test_every_listed_class_and_file_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    overview.show(["--list"])
    shown = capsys.readouterr().out
    for title, base in (("Networks", nn.Module), ("Tasks", LightningModule), ("DataModules", LightningDataModule)):
        section = re.search(rf"^{title}.*\n((?:  .*\n)*)", shown, re.MULTILINE)
        for line in section[1].splitlines() if section else ():
            name, text = line.split(maxsplit=1)
            assert issubclass(import_class(project_classes()[name][0]), base)
            assert text
    assert "Tasks" in shown or not (ROOT / "src" / "tasks").is_dir()
    files = re.findall(r"^  (configs/\S+)", shown, re.MULTILINE)
    assert sorted(files) == sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))
    recipes = re.search(r"^Recipes.*\n((?:  .*\n)*)", shown, re.MULTILINE)[1]  # type: ignore[index]
    for file in files:
        if "/tune/" not in file:
            assert config.is_recipe(config.load_config(file)[1]) == (f"  {file} " in recipes)


def test_a_list_with_other_words_or_a_file_that_is_no_python_is_one_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, expected in ((["--list", "fit"], "--list fit: give --list alone"), (["--list"], "own.py, line 1: ")):
        write(project / "src/own.py", "class A(nn.Module): x = = 1\n")
        with pytest.raises(SystemExit) as stop:
            overview.show(words)
        assert stop.value.code == 2
        assert expected in capsys.readouterr().err


def test_copies_of_editors_are_no_classes(project: Path) -> None:
    own = "class Net:\n    pass\n"
    for name in ("net.py", ".ipynb_checkpoints/net-checkpoint.py", "net copy.py", "2net.py"):
        write(project / "src" / "own" / name, own)
    classes._project_bases.cache_clear()
    assert classes.project_classes() == {"Net": ["src.own.net.Net"]}
