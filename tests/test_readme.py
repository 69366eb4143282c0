"""Every command of the README is parsed, and runs as far as a minute and this machine allow."""

import os
import re
import shlex
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import models

from src import ROOT, export, generate, predict, serve, tune
from src.engine.cli.cli import StarterCLI
from src.engine.cli.config import load_config
from tests.conftest import DELETED, QUIET, own_pairs, pictures, tiny_pretrained

if DELETED:
    pytest.skip("the README speaks of parts that have been deleted", allow_module_level=True)

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = README.index("## Your own project")  # whose files the user writes
FIGURES = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")  # of recipes, which are all run in test_configs.py
ALL = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
COMMANDS = sorted(
    {
        command
        for command in re.findall(r"python -m src\.(?:train|generate|predict|export|serve|tune)[^`\n|#]*", ALL)
        if not re.search(r'"\$@"|breast_cancer', command) and command not in FIGURES  # these have tests of their own
    }
)
# What starts the program on several devices; the program's own part is read here.
LONG = set(re.findall(r"python -m src\.train([^`\n|#]*)", FIGURES))
LAUNCHED = sorted(
    LONG | set(re.findall(r"(?:torchrun|sbatch)[^`\n|#]*(?:-m src\.train|train\.sbatch)([^`\n|#]*)", ALL))
)
TWO_STEPS = ("--trainer.max_steps=2", "--trainer.val_check_interval=2")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the default recipe has been run once, for the commands that build on that."""
    folder = tmp_path_factory.mktemp("readme")
    short = ("--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", *QUIET)
    root = f"--trainer.default_root_dir={folder / 'logs'}"
    StarterCLI(["fit", *short, root, "--data.source=sample"], time.perf_counter()).run()
    (folder / "path" / "to" / "texts").mkdir(parents=True)
    (folder / "path" / "to" / "texts" / "a.txt").write_text("To be, or not to be. " * 200)
    table = "text,label\n" + "".join(f"the {word} sat,{word}\n" for word in ("cat", "dog") * 30)
    (folder / "path" / "to" / "table.csv").write_text(table)
    pictures(folder / "path" / "to" / "images")
    tiny_pretrained("bert", folder / "path" / "to")
    (folder / "path" / "to" / "bert").rename(folder / "path" / "to" / "model")
    tiny_pretrained("gpt2", folder / "path" / "to")
    torch.save(models.mobilenet_v3_small().state_dict(), folder / "path" / "to" / "weights.pth")
    gpt = ("--config=configs/text/shakespeare_gpt_fast.yaml", "--data.path", str(folder / "path" / "to" / "texts"))
    words = ("--data.block_size=32", *TWO_STEPS, "--model.net.d_model=16")
    StarterCLI(["fit", *gpt, *short, root, *words], time.perf_counter()).run()
    own_pairs(folder / "path" / "to" / "pairs").rename(folder / "path" / "to" / "captions.csv")
    for picture in (folder / "path" / "to" / "pairs").iterdir():
        picture.rename(folder / "path" / "to" / picture.name)
    clip = ("--config=configs/multimodal/mnist_clip.yaml", "--data.source=sample", "--max_epochs=1")
    StarterCLI(["fit", *clip, *short, root], time.perf_counter()).run()
    for recipe, more in (
        ("language_id", ()),
        ("sentiment_pretrained", (f"--model.net.pretrained={folder / 'path/to/model'}", "--data.max_length=16")),
    ):
        own = (
            f"--config=configs/{recipe}.yaml",
            f"--data.path={folder / 'path/to/table.csv'}",
            "--max_epochs=1",
            *more,
        )
        StarterCLI(["fit", *own, *short, root], time.perf_counter()).run()
    (folder / "path" / "to" / "digits").mkdir()
    for shade in (0, 200):
        Image.new("L", (28, 28), shade).save(folder / "path" / "to" / "digits" / f"{shade}.png")
    return folder


def own_data(words: list[str], folder: Path) -> list[str]:
    """What a command of the README needs here, where nothing can be downloaded and little time is to be spent."""
    recipe = words[words.index("--config") + 1] if "--config" in words else ""
    if "shakespeare" in recipe:
        small = ["--data.block_size=32", *TWO_STEPS]
        return small if "--data.path" in words else [*small, "--data.path", str(folder / "path" / "to" / "texts")]
    if "sentiment" in recipe:
        given = "--model.net.pretrained" in words or "pretrained" not in recipe
        model = [] if given else ["--model.net.pretrained", str(folder / "path" / "to" / "model")]  # of two layers
        return [*model, "--data.max_length=40", "--data.path", str(folder / "path" / "to" / "table.csv")]
    if "clip" in recipe:
        return ["--data.batch_size=16"]
    if recipe.startswith("configs/language"):
        return []
    if recipe.startswith("configs/image"):
        return ["--data.image_size=32"]
    return ["--data.source=sample", "--data.batch_size=32", *(TWO_STEPS if "fast" in recipe else ())]


@pytest.mark.parametrize("options", LAUNCHED)
def test_a_command_that_is_launched_is_understood(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(options.replace("--accelerator gpu", "--accelerator cpu"))
    with pytest.raises(SystemExit) as stop:
        StarterCLI([*words, "--print_config"], time.perf_counter())
    assert stop.value.code == 0
    assert "max_epochs" in capsys.readouterr().out


def test_consolidate_takes_what_the_readme_says() -> None:
    (command,) = set(re.findall(r"python -m src\.consolidate [^`\n|]*", ALL))
    options = consolidate.parser().parse_args(shlex.split(command)[3:])
    assert (Path(options.ckpt_path).name, options.output) == ("best.ckpt", "whole.ckpt")


def test_the_readme_shows_commands() -> None:
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_runs(command: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    words = shlex.split(command.replace("--accelerator gpu", "--accelerator cpu"))[3:]
    if "src.generate" in command:
        generate.write([*words, "--max_new_tokens", "3"])
        return
    default = ["--ckpt_path", "logs/default/version_0/checkpoints/best.ckpt"]
    if "src.serve" in command:
        assert serve._parse([*words, *default]).port in (8000, 8080)
        return
    if "src.tune" in command:
        assert load_config(tune._parse(words).config)[1]["space"]
        return
    if "src.predict" in command:
        assert predict.predict([*words, "--accelerator", "cpu"]) == 0
        assert Path(words[words.index("--output") + 1]).stat().st_size
        return
    if "src.export" in command:
        export.export([*([] if "--ckpt_path" in words else default), *words])
        assert Path(words[words.index("--output") + 1]).exists()
        return
    one_process = "--devices" not in words
    extra = [*QUIET, f"--trainer.default_root_dir={workplace / 'more'}"]
    if words[:1] in (["test"], ["validate"]):
        extra[-1] = f"--trainer.default_root_dir={workplace / 'logs'}"
        extra += ["--name", "default"]
    elif "last" in words:  # a run that died before its end
        extra[-1] = f"--trainer.default_root_dir={workplace / 'logs'}"
        (workplace / "logs" / "default" / "version_0" / "metrics.json").write_text("{}")
    # Real stages on two batches; several processes are only parsed here, and run in test_cli.py.
    short = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2"]
    extra += [*short, *own_data(words, workplace)] if one_process else []
    extra += [] if "--max_epochs" in words or "--ckpt_path" in words else ["--max_epochs=1"]
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
    if one_process and "--compile" not in words:  # the compiler has a test of its own
        built.run()
        assert built.trainer.state.finished


def test_the_make_commands_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", ALL, re.MULTILINE))
    assert {"train", "test", "tensorboard", "lint", "lock"} <= named <= targets


def test_the_python_line_of_the_readme_loads_a_checkpoint(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.vision.image_classifier import ImageClassifier

    (line,) = re.findall(r"`(ImageClassifier\.load_from_checkpoint\([^`]*\))`", README)
    monkeypatch.chdir(workplace)
    assert eval(line, {"ImageClassifier": ImageClassifier}).net.width == 16


def test_links_inside_the_pages_lead_somewhere() -> None:
    found = 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)
            found += 1
    assert found > 10


def test_files_that_are_named_exist() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:src|configs|docs|tests|scripts|benchmarks)/[\w./]+)`", text):
            assert (ROOT / name).exists() or name in README[GUIDE:], (page.name, name)


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) < 300


def test_options_are_completed_in_a_shell_as_the_readme_says() -> None:
    pytest.importorskip("argcomplete")
    (row,) = re.findall(r"then `(train\(\) \{.*?\}; eval .*?)` and `(train --\w+)`", README)
    ask = f'COMP_LINE="{row[1]}" COMP_POINT={len(row[1])} COMP_TYPE=9; COMP_WORDS=({row[1]}); COMP_CWORD=1'
    script = f'{row[0]}\n{ask}\n_python_argcomplete train\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert b"--trainer.gradient_clip_val" in done.stdout, done.stderr
