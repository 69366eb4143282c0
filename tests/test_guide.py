"""The README's guide to a project of one's own, as it stands there."""

import json
import re
import shlex
from pathlib import Path

import pytest

from src import ROOT
from tests.conftest import copy_of_the_repository, in_copy

README = (ROOT / "README.md").read_text(encoding="utf-8")
PART = README[README.index("## Your own project") : README.index("## Make it yours")]
FILES = {
    re.findall(r"`((?:src|configs)/[\w/]+\.\w+)`", step)[0]: re.findall(r"```\w+\n(.*?)```", step, re.DOTALL)[0]
    for step in re.split(r"\n\*\*\d\. ", PART)[1:]
}


def test_it_asks_for_three_files_of_sixty_lines() -> None:
    assert [name.split("/")[0] for name in FILES] == ["src", "src", "configs"]
    assert sum(len(text.splitlines()) for text in FILES.values()) <= 60
    assert not any((ROOT / name).exists() for name in FILES)


@pytest.mark.slow
def test_what_it_makes_learns_and_is_a_domain_like_any_other(tmp_path: Path) -> None:
    copy = copy_of_the_repository(tmp_path / "copy")
    for name, text in FILES.items():
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(text, encoding="utf-8")
    (command,) = set(re.findall(r"`python (-m src\.train --config [\w/]+\.yaml)`", PART))
    in_copy(copy, *shlex.split(command), "--accelerator=cpu")
    (folder,) = (copy / "logs" / "breast_cancer").glob("version_*")
    assert json.loads((folder / "metrics.json").read_text())["test/acc"] >= 0.95
    tests = ("tests/test_configs.py", "tests/test_repository.py")
    tested = in_copy(copy, "-m", "pytest", "-n0", "-v", *tests, "-k", "breast_cancer or arrows_only or networks")
    for name in ("predicts[configs/tabular/breast_cancer.yaml]", "arrows_only", "networks_need_neither"):
        assert re.search(rf"{re.escape(name)}\S* PASSED", tested), tested
    modules = [name for name in FILES if name.endswith(".py")]
    in_copy(copy, "-m", "ruff", "check", *modules)
    in_copy(copy, "-m", "ruff", "format", "--check", *modules)
