"""Every command of README and docs is parsed, and runs as far as a minute and this machine allow."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image

from src import ROOT
from src.engine.cli.cli import StarterCLI
from src.engine.cli.config import load_config
from src.engine.deploy import exporting, generating, predicting, serving
from src.engine.new.creating import new
from src.engine.parts.overview import show
from src.engine.search import comparing, tuning
from src.engine.system.classes import import_class, project_classes
from tests import toy
from tests.conftest import QUIET, once, pictures
from tests.recipes import DELETED, FOUND, OVERLAYS, SEARCHES, can_run

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS[ROOT / "README.md"]
CHECKPOINTS = TEXTS[ROOT / "docs" / "checkpoints.md"]
# Their files do not exist here: see test_guide.py and test_own_code.py.
ELSEWHERE = {"own_project.md": r"^.*?## Make it yours", "your_own.md": r"```bash.*?```|## Four more kinds.*"}
ELSEWHERE |= {"own_code.md": r".*", "coming_from.md": r"```bash.*?```", "migration.md": r".*"}  # old names
for page, part in ELSEWHERE.items():
    TEXTS[ROOT / "docs" / page] = re.sub(part, "", TEXTS[ROOT / "docs" / page], flags=re.DOTALL)
FIGURES = TEXTS[ROOT / "docs" / "figures.md"]
TRAIN = r"python (-m src\.train[^`\n|#]*)"
TWO_STEPS = ("--trainer.max_steps=2", "--trainer.val_check_interval=2")


def needs(command: str) -> list[str]:
    """The files of configs/ that a command names; a run is named like its recipe."""
    found = re.findall(r"configs/[\w/]+\.yaml", command)
    for name in re.findall(r"logs/(\w+)/version_", command):
        found += [path for path in FOUND if Path(path).stem == name and path not in SEARCHES] or [f"configs/{name}"]
    return [*found, "configs/default.yaml"] if all(path in OVERLAYS for path in found) else found


# `configs/default.yaml` may have been replaced: other options fit it.
DEFAULT = ROOT / "configs" / "default.yaml"
IS_OURS = DEFAULT.is_file() and "MNISTDataModule" in DEFAULT.read_text(encoding="utf-8")


def runnable(commands: list[str]) -> list[str]:
    """Without those of a domain that has been deleted, or of another default recipe."""

    def runs(path: str) -> bool:
        return can_run(path) and (IS_OURS or path != "configs/default.yaml")

    return sorted({one.strip() for one in commands if (IS_OURS and not DELETED) or all(map(runs, needs(one)))})


# Their commands need data that tests of their own make, or another host: they are read here.
READ = ("audio.md", "detection.md", "remote_files.md")
ALL = "\n".join(text for page, text in TEXTS.items() if page.name not in READ)
SHOWN = re.findall(r"python (-m src\.(?:train|generate|predict|export|serve|tune|compare)[^`\n|#]*)", ALL)
SHOWN = [command for command in SHOWN if '"$@"' not in command and not re.search(r"(s3|https)://", command)]
LONG = re.findall(TRAIN, FIGURES)  # test_configs.py runs every recipe
COMMANDS = [one for one in runnable(SHOWN) if one not in runnable(LONG) and "--format checkpoint" not in one]
# What starts the program on several devices; the program's own part is read here.
ON_DEVICES = re.findall(r"(?:torchrun|sbatch)[^`\n|#]*(?:-m src\.train|train\.sbatch)([^`\n|#]*)", ALL)
ELSEWHERE_RUN = [
    one.rstrip(" \\")
    for one in re.findall(TRAIN, "\n".join(TEXTS[ROOT / "docs" / name] for name in READ))
    if "--run" not in one
]
PARSED = runnable([*(one.removeprefix("-m src.train") for one in (*LONG, *ELSEWHERE_RUN)), *ON_DEVICES])


def make_runs(folder: Path) -> str:
    """What the commands of the README build on: own data, and a short run of each recipe that they name."""
    data = folder / "path" / "to"
    logs = f"--trainer.default_root_dir={folder / 'logs'}"

    def train(*words: str) -> None:
        short = ("--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--max_epochs=1")
        StarterCLI(["fit", *short, *words, *QUIET, logs], time.perf_counter()).run()

    if "vision" not in DELETED:
        from torchvision import models

        for name in ("images", "train", "val", "test"):
            pictures(data / name)
        (data / "digits").mkdir()
        for shade in (0, 200):
            Image.new("L", (28, 28), shade).save(data / "digits" / f"{shade}.png")
        torch.save(models.mobilenet_v3_small().state_dict(), data / "weights.pth")
        if IS_OURS:
            train("--data.source=sample", "--data.batch_size=32")
    if "text" not in DELETED:
        from tests.text.helpers import tiny_pretrained

        (data / "texts").mkdir(parents=True)
        (data / "texts" / "a.txt").write_text("To be, or not to be. " * 200)
        rows = "".join(f"the {word} sat,{word}\n" for word in ("cat", "dog") * 30)
        (data / "table.csv").write_text(f"text,label\n{rows}")
        tiny_pretrained("gpt2", data)
        Path(tiny_pretrained("bert", data)).rename(data / "model")
        own = ("--data.path", str(data / "texts"), "--data.block_size=32", "--model.net.d_model=16")
        train("--config=configs/text/shakespeare_gpt_fast.yaml", *own, *TWO_STEPS)
        table = f"--data.path={data / 'table.csv'}"
        train("--config=configs/text/language_id.yaml", table)
        tiny = (f"--model.net.pretrained={data / 'model'}", "--data.max_length=16")
        train("--config=configs/text/sentiment_pretrained.yaml", table, *tiny)
    if "audio" not in DELETED:
        from tests.audio.helpers import own_sounds

        own_sounds(data / "sounds")
    if "multimodal" not in DELETED:
        from tests.multimodal.helpers import own_pairs

        own_pairs(data / "pairs").rename(data / "captions.csv")
        for picture in (data / "pairs").iterdir():
            picture.rename(data / picture.name)
        train("--config=configs/multimodal/mnist_clip.yaml", "--data.source=sample")
    return str(folder)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `make_runs` gives, made once for all test processes and copied for each."""
    made = once(tmp_path_factory, "readme", make_runs)
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("readme") / "copy"))


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
    if "language_id" in recipe or "biology" in recipe or "audio" in recipe:
        return []
    if "image_folder" in recipe:
        return ["--data.image_size=32"]
    return ["--data.source=sample", "--data.batch_size=32", *(TWO_STEPS if "fast" in recipe else ())]


def on_cpu(command: str) -> list[str]:
    """The words of a command for a GPU, with as many processes on the CPU."""
    command = re.sub(r"--accelerator (gpu|mps)", "--accelerator cpu", command)
    return shlex.split(
        re.sub(r"--devices (\d+(?:,\d+)+)", lambda found: f"--devices {found[1].count(',') + 1}", command)
    )


def test_the_pages_show_commands() -> None:
    assert len(set(SHOWN)) > 50


def test_what_the_pages_call_is_there() -> None:
    called = re.findall(r"python (?:-m (src\.\w+)|((?:benchmarks|scripts)/\w+)\.py)", ALL)
    for module, script in called:
        assert (ROOT / f"{module.replace('.', '/') or script}.py").is_file(), module or script


@pytest.mark.parametrize("options", PARSED)
def test_a_command_that_takes_long_or_several_devices_is_understood(
    options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = on_cpu(options)
    with pytest.raises(SystemExit) as stop:
        StarterCLI([*words, "--print_config"], time.perf_counter())
    assert stop.value.code == 0
    assert "max_epochs" in capsys.readouterr().out


def test_a_sharded_checkpoint_is_made_one_file_as_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = {command.strip() for command in SHOWN if "--format checkpoint" in command}
    options, output = exporting._parse(shlex.split(command)[2:])
    assert (Path(options.ckpt_path).name, output.name) == ("best.ckpt", "whole.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_runs(command: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    words = on_cpu(command)[2:]
    if "src.train" in command and show(words):
        return
    if "src.generate" in command:
        generating.generate([*words, "--max_new_tokens", "3"])
        return
    default = ["--ckpt_path", "logs/default/version_0/checkpoints/best.ckpt"]
    if "src.serve" in command:
        assert serving._parse([*words, *default]).port in (8000, 8080)
        return
    if "src.tune" in command:
        assert load_config(tuning._parse(words).config, dotted=True)[1]["space"]
        return
    if "src.compare" in command:
        runs = workplace / "logs" / "default"
        if not (runs / "version_1").exists():
            shutil.copytree(runs / "version_0", runs / "version_1")
        assert comparing.compare([*words, *(["logs"] if "--best" in words else ["--output", "curves.png"])]) == 0
        return
    if "src.predict" in command:
        if "--help" in words:
            with pytest.raises(SystemExit, match="0"):
                predicting.predict(words)
            return
        given = [] if "--ckpt_path" in words else default
        Path(words[words.index("--output") + 1]).unlink(missing_ok=True)  # of another command
        assert predicting.predict([*words, *given, "--accelerator", "cpu"]) == 0
        assert Path(words[words.index("--output") + 1]).stat().st_size
        return
    if "src.export" in command:
        # The runs of `workplace` have data of their own, which a checkpoint given by its path does not name.
        given = next((word for word in words if "/checkpoints/" in word), "")
        own = own_data(["--config", f"configs/{given.split('/')[1]}.yaml"], workplace) if given else []
        data = own[own.index("--data.path") :] if "--data.path" in own else []
        exporting.export([*([] if given or "--ckpt_path" in words else default), *words, *data])
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
    # Real stages on two batches; several processes are only parsed here, and run in test_distributed.py.
    short = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2"]
    extra += [*short, *own_data(words, workplace)] if one_process else []
    extra += [] if "--max_epochs" in words or "--ckpt_path" in words else ["--max_epochs=1"]
    if words in (["--help"], ["--list"]):
        assert show(words)
        return
    if any(word.endswith(("help", "help_all", "print_config")) for word in words):
        with pytest.raises(SystemExit) as stop:
            StarterCLI([*words, *extra], time.perf_counter())
        assert stop.value.code == 0
        return
    built = StarterCLI([*words, *extra], time.perf_counter())
    for flag, value in pairwise(words):
        name = flag.removeprefix("--")
        if name in built.config.trainer:
            assert str(built.config.trainer[name]) == value
    has_own = "--compile" in words or re.search(r"logger/(mlflow|wandb)", command)  # tests of their own
    if one_process and not has_own:
        built.run()
        assert built.trainer.state.finished


def test_the_make_commands_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", ALL, re.MULTILINE))
    assert {"train", "test", "tensorboard", "docs", "lint", "lock", "figures"} <= named <= targets


@pytest.mark.slow
def test_the_python_line_of_the_docs_loads_a_checkpoint(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    lines = re.findall(r"`((\w+)\.load_from_checkpoint\([^`]*\))`", CHECKPOINTS)
    assert lines
    for line, name in lines:
        if IS_OURS and (not DELETED or name in project_classes()):
            model = eval(line, {name: import_class(project_classes()[name][0])})
            assert model.net.width == 16


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_links_inside_the_pages_lead_somewhere() -> None:
    links = [
        (page, *target.partition("#")[::2])
        for page in PAGES
        for target in re.findall(r"\]\(([^):\s]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 80
    for page, target, anchor in links:
        path = page.parent / target if target else page
        assert path.exists(), (page.name, target)
        assert not anchor or anchor in anchors(path), (page.name, target, anchor)


def test_files_that_are_named_exist() -> None:
    gone = tuple(f"{folder}/{name}/" for folder in ("src", "configs", "tests") for name in DELETED)
    for page, text in TEXTS.items():
        for name in re.findall(r"`((?:src|configs|docs|tests|scripts|benchmarks)/[\w./]+)`", text):
            assert (ROOT / name).exists() or f"{name}/".startswith(gone), (page.name, name)


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 150
    table = README[README.index("## How do I") : README.index("## Compared")]
    assert len(re.findall(r"^\|", table, re.MULTILINE)) <= 2 + 12


def test_the_badges_of_the_readme_are_true() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {Requirement(one).name: Requirement(one).specifier for one in project["dependencies"]}
    shown = dict(re.findall(r"shields\.io/badge/(\w+)-([^)]+)-blue", README))
    for name in ("torch", "lightning"):
        (least,) = [one.version for one in bounds[name] if one.operator == ">="]
        assert shown[name] == f"{least}+"
    versions = re.findall(r'python: \["(.*)"\]', (ROOT / ".github" / "workflows" / "ci.yaml").read_text())[0]
    first, *_, last = versions.split('", "')
    assert shown["python"] == f"{first}_to_{last}"
    assert project["requires-python"] == f">={first}"
    assert shown["licence"] == project["license"]


def test_the_readmes_figures_are_those_of_the_page() -> None:
    for name, value in re.findall(r"^\| `configs/(?:\w+/)?(\w+)\.yaml`.*? \| ([\d.]+)", README, re.MULTILINE):
        (row,) = re.findall(rf"^\| {name} \| .*$", FIGURES, re.MULTILINE)
        assert f"| {value} " in row, row


@pytest.mark.slow
def test_new_projects_can_be_made_as_the_pages_say(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    commands = {one.strip() for one in re.findall(r"python -m src\.new (\.\./[^`\n|#]*)", ALL)}
    assert len(commands) > 4
    for command in commands:
        words = shlex.split(command)
        if not DELETED or "--recipe" not in words:
            new([str(tmp_path / words[0]), *words[1:], *([] if "--dry-run" in words else ["--dry-run"])])
            assert "pyproject.toml" in capsys.readouterr().out


def test_options_are_completed_in_a_shell_as_the_docs_say() -> None:
    pytest.importorskip("argcomplete")
    ((function, line),) = re.findall(r"then `(train\(\) \{.*?\}; eval .*?)` and `(train --\w+)`", ALL)
    if not can_run("configs/default.yaml"):
        line = line.replace("train ", f"train --config {toy.RECIPE} ")
    ask = f'COMP_LINE="{line}" COMP_POINT={len(line)} COMP_TYPE=9; COMP_WORDS=({line}); COMP_CWORD=1'
    script = f'{function}\n{ask}\n_python_argcomplete train\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert b"--trainer.gradient_clip_val" in done.stdout, done.stderr
