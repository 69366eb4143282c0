"""Every command of the README is parsed, and runs as far as a minute and this machine allow."""

import re
import shlex
import time
from itertools import pairwise
from pathlib import Path

import pytest

from src import ROOT
from src.cli import StarterCLI
from tests.conftest import QUIET

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"python -m src\.train[^`\n|#]*", README)))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the default recipe has been run once, for the commands that build on that."""
    folder = tmp_path_factory.mktemp("readme")
    short = ("--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--data.source=sample")
    StarterCLI(["fit", *short, *QUIET, f"--trainer.default_root_dir={folder / 'logs'}"], time.perf_counter()).run()
    return folder


def test_the_readme_shows_commands() -> None:
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_runs(command: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    words = shlex.split(command.replace("--accelerator gpu", "--accelerator cpu"))[3:]
    one_process = "--devices" not in words
    extra = [*QUIET, f"--trainer.default_root_dir={workplace / 'more'}"]
    # Real stages on two batches; several processes are only parsed here, and run in test_cli.py.
    short = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2"]
    extra += [*short, "--data.source=sample"] if one_process else []
    if any(word.endswith(("help", "print_config")) for word in words):
        with pytest.raises(SystemExit) as stop:
            StarterCLI([*words, *extra], time.perf_counter())
        assert stop.value.code == 0
        return
    built = StarterCLI([*words, *extra], time.perf_counter())
    for flag, value in pairwise(words):
        name = flag.removeprefix("--")
        if name in built.config.trainer:
            assert str(built.config.trainer[name]) == value
    if one_process:
        built.run()
        assert built.trainer.state.finished


def test_the_make_commands_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"train", "test", "tensorboard", "lint", "lock"} <= named <= targets


def test_the_python_line_of_the_readme_loads_a_checkpoint(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.models.image_classifier import ImageClassifier

    (line,) = re.findall(r"`(ImageClassifier\.load_from_checkpoint\([^`]*\))`", README)
    monkeypatch.chdir(workplace)
    assert eval(line, {"ImageClassifier": ImageClassifier}).net.width == 32


def test_links_inside_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
