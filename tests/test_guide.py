"""The guides to a project of one's own, docs/own_project.md and docs/your_own.md, as they stand there."""

import json
import re
import shlex
from pathlib import Path

import pytest

from src import ROOT
from tests.conftest import copy_of_the_repository, in_copy

PART = (ROOT / "docs" / "own_project.md").read_text(encoding="utf-8").partition("## Make it yours")[0]
FILES = {
    re.findall(r"`((?:src|configs)/[\w/]+\.\w+)`", step)[0]: re.findall(r"```\w+\n(.*?)```", step, re.DOTALL)[0]
    for step in re.split(r"\n\*\*\d\. ", PART)[1:]
}
PAGE = (ROOT / "docs" / "your_own.md").read_text(encoding="utf-8")
MORE = dict(re.findall(r"`((?:src|configs)/own/\w+\.\w+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
OWN_CODE = (ROOT / "docs" / "own_code.md").read_text(encoding="utf-8")  # see test_own_code.py
PARTS = dict(re.findall(r"`((?:src|configs)/own/\w+\.\w+)`:\n\n```\w+\n(.*?)```", OWN_CODE, re.DOTALL))
# What each example must reach, and how its raw test samples become files to predict on, with their true values.
CSV = """
import csv
def write(rows):
    with open("given.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
"""
PNG = """
from pathlib import Path
from PIL import Image
def write(folder, images):
    Path(folder).mkdir()
    for number, image in enumerate(images):
        image.save(f"{folder}/{number:03}.png")
"""
EXAMPLES = {
    "diabetes": (
        {"test/r2": 0.5},
        CSV + "write([{**data.rows[n], 'true': data.parts[2].dataset[n][1].item()} for n in data.parts[2].indices])",
        "[data.rows[n] for n in data.parts[2].indices]",
        ["given.csv", "--truth", "true"],
    ),
    "digit_facts": (
        {"test/map": 0.95, "test/f1_has a hole": 0.85},
        PNG + "write('given', [data.images[n] for n in data.parts[2].indices])",
        "[data.images[n] for n in data.parts[2].indices]",
        ["given"],
    ),
    "shapes": (
        {"test/iou": 0.6, "test/acc": 0.93},
        PNG + "write('given', data.drawn[2][0])\n"
        "write('masks', [Image.fromarray(one.byte().numpy()) for one in data.drawn[2][1]])",
        "data.drawn[2][0]",
        ["given", "--truth", "masks"],
    ),
    "brackets": (
        {"test/acc": 0.95, "test/f1": 0.9},
        CSV + "write([{'text': text, 'true': ' '.join(data.labels[n] for n in data.batch([text])[2][0])}"
        " for text in data.parts[2]])",
        "data.parts[2]",
        ["given.csv", "--truth", "true"],
    ),
}


def test_it_asks_for_three_files_of_sixty_lines() -> None:
    assert [name.split("/")[0] for name in FILES] == ["src", "src", "configs"]
    assert sum(len(text.splitlines()) for text in FILES.values()) <= 60
    assert not any((ROOT / name).exists() for name in FILES)


def test_the_second_page_asks_for_two_files_of_sixty_lines_per_task() -> None:
    assert len(MORE) == 2 * len(EXAMPLES)
    for name in EXAMPLES:
        files = (f"src/own/{name}.py", f"configs/own/{name}.yaml")
        assert sum(len(MORE[file].splitlines()) for file in files) <= 60
        assert not any((ROOT / file).exists() for file in files)


def test_each_row_of_the_contract_has_a_test() -> None:
    contract = PAGE[PAGE.index("## The contract") : PAGE.index("## Four more")]
    cells = [line.strip("| ").split(" | ") for line in contract.splitlines() if line.endswith(".py` |")]
    assert len(cells) > 25
    for *_, names, _what, test in cells:
        assert (ROOT / test.strip("`")).is_file(), test
        assert not re.match("`tests/(?!engine|tasks)[a-z]+/", test), f"{test} goes with its domain"
        path = ROOT / test.strip("`")
        found = [one for one in (path, path.with_name("toys.py"), path.with_name("kinds.py")) if one.is_file()]
        text = "".join(one.read_text(encoding="utf-8") for one in found)
        words = re.findall(r"`([\w+]+)", names)
        assert not words or any(word in text for word in words), f"{test} says nothing of {names}"


@pytest.mark.parametrize("name", [name for name, text in {**FILES, **MORE}.items() if "DataModule(" in text])
def test_a_data_module_reads_its_data_in_setup(name: str) -> None:
    """`__init__` also runs when a model predicts, where the data may not be."""
    (init,) = re.findall(r"DataModule\):.*?def __init__.*?:\n(.*?)\n\n", {**FILES, **MORE}[name], re.DOTALL)
    assert set(init.split("\n")) == {"        super().__init__()", "        self.batch_size = batch_size"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the files of the guides."""
    copy = copy_of_the_repository(tmp_path_factory.mktemp("guide") / "copy")
    for name, text in {**FILES, **MORE, **PARTS}.items():
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(text, encoding="utf-8")
    return copy


@pytest.mark.slow
def test_what_it_makes_learns_and_is_a_domain_like_any_other(copy: Path) -> None:
    (command,) = set(re.findall(r"`?python (-m src\.train --config [\w/]+\.yaml)[`\n]", PART))
    in_copy(copy, *shlex.split(command), "--accelerator=cpu")
    (folder,) = (copy / "logs" / "breast_cancer").glob("version_*")
    assert json.loads((folder / "metrics.json").read_text())["test/acc"] >= 0.95
    tests = ("tests/test_configs.py", "tests/test_repository.py")
    tested = in_copy(copy, "-m", "pytest", "-n0", "-v", *tests, "-k", "breast_cancer or arrows_only or networks")
    for name in ("predicts[configs/tabular/breast_cancer.yaml]", "arrows_only", "networks_need_neither"):
        assert re.search(rf"{re.escape(name)}\S* PASSED", tested), tested
    write = (
        "from src.tabular.breast_cancer import *\nfrom tests.contract import check_prepare\n"
        f"data = BreastCancerDataModule()\ndata.setup('test')\n{CSV}"
        "write([{**data.rows[n], 'true': data.labels[data.parts[2].dataset[n][1]]} for n in data.parts[2].indices])\n"
        "check_prepare(data, [data.rows[n] for n in data.parts[2].indices])"
    )
    in_copy(copy, "-c", write)
    checkpoint = f"--ckpt_path={folder / 'checkpoints' / 'best.ckpt'}"
    said = in_copy(copy, "-m", "src.predict", "given.csv", "--truth=true", "--output=cancer.csv", checkpoint)
    assert float(re.findall(r"^acc (\S+)", said, re.MULTILINE)[0]) >= 0.95
    (copy / "given.csv").unlink()


@pytest.mark.slow
def test_the_code_of_the_guides_passes_the_projects_checks(copy: Path, checked_types: str) -> None:
    modules = [name for name in (*FILES, *MORE, *PARTS) if name.endswith(".py")]
    in_copy(copy, "-m", "ruff", "check", *modules)
    in_copy(copy, "-m", "ruff", "format", "--check", *modules)
    in_copy(copy, "-m", "mypy", "--cache-dir", checked_types, *modules)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_each_kind_learns_predicts_scores_and_is_exported(copy: Path, tmp_path: Path, name: str) -> None:
    least, write, raw, given = EXAMPLES[name]
    in_copy(copy, "-m", "src.train", "--config", f"configs/own/{name}.yaml", "--accelerator=cpu")
    (folder,) = (copy / "logs" / name).glob("version_*")
    found = json.loads((folder / "metrics.json").read_text())
    assert {one: found[one] for one in least if found[one] < least[one]} == {}
    (cls,) = re.findall(r"^class (\w+DataModule)", MORE[f"src/own/{name}.py"], re.MULTILINE)
    (shown,) = re.findall(r"```python\n(data = .*\n.*\ncheck_prepare.*)\n```", PAGE)
    checked = shown if cls in shown else f"check_prepare(data, {raw})"
    made = f"data = {cls}()\ndata.setup('test')\n"
    head = f"from src.own.{name} import *\nfrom tests.contract import check_prepare\n{made}"
    for old in ("given", "masks"):
        if (copy / old).exists():
            (copy / old).rename(tmp_path / old)
    in_copy(copy, "-c", f"{head}{write}\n{checked}")
    precise = ("--ckpt_path", str(folder / "checkpoints" / "best.ckpt"))
    said = in_copy(copy, "-m", "src.predict", *given, "--output", str(tmp_path / "out.jsonl"), *precise)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) > 60
    assert not any(row["error"] for row in rows)
    scores = dict(re.findall(r"^(\w+) (\S+)$", said, re.MULTILINE))
    assert bool(scores) == ("--truth" in given)
    assert {one: float(score) for one, score in scores.items()} == pytest.approx(
        {one: found[f"test/{one}"] for one in scores}, rel=1e-2
    )
    for form, suffix in (("onnx", ".onnx"), ("torch", ".pt2")):
        output = str(tmp_path / f"model{suffix}")
        assert "largest difference" in in_copy(copy, "-m", "src.export", "--format", form, "--output", output, *precise)
