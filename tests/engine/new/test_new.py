"""Each kind, recipe and command alone makes a project that starts and refers to nothing that is not there."""

import hashlib
import os
import random
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from src import ROOT
from src.engine.new.project import DEFAULT, kinds, recipes
from src.engine.new.template import Template
from tests.conftest import in_copy, once, python_in
from tests.engine.new.dangling import dangling
from tests.engine.new.projects import environment, make

TEMPLATE = Template(ROOT)
KINDS = [("--kind", kind) for kind in kinds(ROOT)]
README = ("--kind", "regression")  # the project whose README's commands are run
# Those of several domains last: what they share with smaller projects is tested there.
RECIPES = sorted(
    (("--recipe", recipe) for recipe in recipes(TEMPLATE)),
    key=lambda words: recipes(TEMPLATE)[words[1]].startswith("configs/multimodal/"),
)
# One recipe of each domain, one kind with tasks and one without: overlays and strategies are run with it.
SLOWER = ("default", "three", "shakespeare_gpt", "shakespeare_gpt_fast")  # there is a quicker one of the same domain
QUICKER = {path.split("/")[1]: name for name, path in recipes(TEMPLATE).items() if name not in SLOWER}
WHOLE = [*QUICKER.values(), README[1], "lightning"]
RECIPES_ONLY = "not overlay and not strategy"
LAST = next((words for words in RECIPES if words[1] == "shakespeare_gpt"), RECIPES[-1])
PARTS = ("train", "predict", "export", "serve", "tune", "compare", "generate")
PARTS += ("compile,clusters,fsdp2,remote,explain,optimizer_overrides,overview,trust",)
ALONE = [(*start, "--with", part) for start in (KINDS[0], LAST) for part in PARTS]
MORE = [("--kind", "regression", "--package", "tumours"), (*RECIPES[1], *LAST)]
# What a machine may lack; every other reason to skip would be something that the project lacks.
MACHINE = (
    r"accelerator|GPU|FULL_DATA_DIR|glibc|C library|/proc|malloc|mounted|chromium|PostgreSQL|slurm|root|C\+\+|g\+\+"
)


@pytest.mark.slow
@pytest.mark.parametrize("words", [*ALONE, *MORE], ids=" ".join)
def test_a_project_has_all_that_it_refers_to_and_starts(words: tuple[str, ...], tmp_path: Path) -> None:
    check(make(tmp_path / "mine", *words), "tumours" if "tumours" in words else "src")


def check(project: Path, package: str = "src") -> None:
    assert dangling(project, package) == []
    for command in (("check",), ("format", "--check")):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache"]
        done = subprocess.run(ruff, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    assert f'"module": "{package}.train"' in (project / ".vscode" / "launch.json").read_text()
    assert len((project / "README.md").read_text().splitlines()) <= 80
    printed = in_copy(project, "-m", f"{package}.train", "--print_config", "--accelerator=cpu")
    assert re.search(r"^model:\n  class_path: ", printed, re.MULTILINE), printed[-3000:]


def run_tests(project: Path, *words: str) -> None:
    """Run tests of a project; none may fail, or skip for what the project lacks."""
    check_skipped(
        in_copy(project, "-m", "pytest", "-n0", "-q", "-rs", "-m", "not slow", "-p", "no:cacheprovider", *words)
    )


def check_skipped(said: str) -> None:
    skipped = re.findall(r"^SKIPPED .*", said, re.MULTILINE)
    assert [line for line in skipped if not re.search(MACHINE, line)] == []


@pytest.mark.slow
@pytest.mark.parametrize("words", [kind for kind in KINDS if kind != README], ids=" ".join)
def test_a_project_of_each_kind_is_complete_and_its_tests_pass(words: tuple[str, ...], tmp_path: Path) -> None:
    project = make(tmp_path / "mine", *words)
    check(project)
    run_tests(project, *(() if words[1] in WHOLE else ("-k", RECIPES_ONLY)))


@pytest.mark.slow
@pytest.mark.parametrize("words", RECIPES, ids=" ".join)
def test_a_project_of_each_recipe_is_complete_and_its_tests_pass(
    words: tuple[str, ...], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Tests that several projects have are imported in each, and run in one of them."""
    project = make(tmp_path / "mine", *words)
    check(project)
    shorter = "" if words[1] in WHOLE else f" and {RECIPES_ONLY}"
    run_tests(project, "-k", f"({' or '.join(own_tests(project, tmp_path_factory))}){shorter}")


def own_tests(project: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files of tests that no other project has had with the same content, and those of its configurations."""
    found = []
    for path in sorted((project / "tests").rglob("test_*.py")):
        content, name = hashlib.sha256(path.read_bytes()).hexdigest(), str(project)
        if path.name == "test_configs.py" or once(tmp_path_factory, content, lambda _, name=name: name) == name:
            found.append(path.name)
    return found


@pytest.mark.slow
def test_the_commands_of_a_readme_work_its_tests_too(tmp_path: Path, checked_types: str) -> None:
    project = make(tmp_path / "mine", *README)
    check(project)
    environment(project)
    table = project / "path" / "to" / "files"
    table.parent.mkdir(parents=True)
    table.with_suffix(".csv").write_text("x1,x2,x3,x4,x5\n0.1,0.2,0.3,0.4,0.5\n")
    for words in (("train", "ARGS=--accelerator cpu"), ("test", "ARGS=-rs -n0"), ("lint",)):
        env = {**os.environ, "MYPY_CACHE_DIR": checked_types}
        done = subprocess.run(["make", *words], cwd=project, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        check_skipped(done.stdout)
    for command in re.findall(r"`python -m ([^`]*)`", (project / "README.md").read_text()):
        words = shlex.split(
            command.replace("path/to/files", "path/to/files.csv")
            .replace("accelerator gpu", "accelerator cpu")
            .replace("--devices 4", "--devices 2")
        )
        short = [] if words[0] != "src.train" or "--help" in command or ".help" in command else ["--fast_dev_run"]
        if "--update" not in words and "--ckpt_path" not in words:
            done = python_in(project, "-m", *words, *short)
            assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["regression", "lightning"])
def test_a_project_trains_before_and_after_its_search(kind: str, tmp_path: Path) -> None:
    project = make(tmp_path / "mine", "--kind", kind, "--with", "train,tune")
    (search,) = re.findall(r"`python -m (src\.tune [^`]*)`", (project / "README.md").read_text())
    short = ("--max_epochs=1", "--accelerator=cpu")
    for command in ("src.train", f"{search} --n_trials 1", "src.train", "src.train --config logs/search/best.yaml"):
        done = python_in(project, "-m", *command.split(), *short)
        assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_a_random_project_passes_lint_and_its_tests(
    number: int, tmp_path: Path, checked_types: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seed = once(tmp_path_factory, "seed", lambda _: os.environ.get("SEED", str(random.randrange(10**6))))
    draw = random.Random(f"{seed} {number}")
    print(f"SEED={seed}")  # to draw the same again
    chosen = draw.sample([*kinds(ROOT)], draw.randint(0, 1))
    more = draw.sample([*recipes(TEMPLATE)], draw.randint(1 - len(chosen), 2))
    parts = draw.sample(
        ["predict", "export", "serve", "tune", *DEFAULT[1:], "clusters", "fsdp2", "remote"], draw.randint(0, 5)
    )
    words = [
        *(f"--kind={kind}" for kind in chosen),
        *(f"--recipe={recipe}" for recipe in more),
        f"--with={','.join(parts)}",
    ]
    print(*words)
    project = make(tmp_path / "mine", *words)
    check(project)
    in_copy(project, "-m", "mypy", "--cache-dir", checked_types)
    # One runs all of its tests, the others those that no other project has.
    own = f"({' or '.join(own_tests(project, tmp_path_factory))}) and " if number else ""
    run_tests(project, "-k", f"{own}{RECIPES_ONLY}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "multi_label", "segmentation"])
def test_the_example_networks_are_exported_for_images_of_any_size(kind: str) -> None:
    pytest.importorskip("onnxscript")
    network = runpy.run_path(str(ROOT / "templates" / "kinds" / kind / "src" / "example" / "network.py"))["ExampleNet"]
    for side in (28, 36):
        assert torch.onnx.export(network().eval(), (torch.zeros(2, 1, side, side),), dynamo=True) is not None


def test_the_plain_module_logs_means_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "templates" / "kinds" / "lightning" / "src" / "example"
    monkeypatch.setitem(sys.modules, "src.example", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "src.example.data", SimpleNamespace(POINTS=8))
    module = runpy.run_path(str(folder / "module.py"))["ExampleModule"]()
    logged: dict[str, Any] = {}
    monkeypatch.setattr(LightningModule, "log", lambda _, name, *__, **options: logged.update({name: options}))
    batch = (torch.zeros(2, 8), torch.zeros(2, 8))
    for step in (module.training_step, module.validation_step, module.test_step):
        step(batch, 0)
    assert [logged[f"{stage}/loss"]["sync_dist"] for stage in ("train", "val", "test")] == [True, True, True]
