"""What is wrong with a setting, in the user's words; without this part, in those of the parser."""

from collections.abc import Callable
from pathlib import Path

import pytest

from src.engine.cli import cli
from src.engine.parts.explain import _origin
from src.engine.system.hooks import hooks
from tests.conftest import write

ErrorOf = Callable[..., str]
STRIPED = "tests.engine.cli.test_program.StripedData"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--model tests.toy.ToyNet", "ToyNet is not a LightningModule; networks go to --model.net"),
        ("--lr_scheduler StepLR", "StepLR needs step_size: give --lr_scheduler.step_size"),
        ("--devics 2", "--devics: no such option, did you mean --devices?"),
        ("--lr 1e-3", "--lr: no such option, did you mean --optimizer.lr?"),
        ("--batch_size 8", "--batch_size: no such option, did you mean --data.batch_size?"),
        ("--model.net.widht 8", "--model.net.widht: ToyNet has no argument widht, did you mean width?"),
        (
            "--model.net tests.toy.ToyMLP --model.net.size 3",
            "--model.net.size: ToyMLP has no argument size; it has in_features, num_classes, hidden",
        ),
        ("--optimizer.params []", "AdamW has no argument params; it has lr, "),
        ("--optimizer.nope 1", "AdamW has no argument nope; it has lr, "),
        ("--max_epochs many", "--max_epochs many: expected int"),
        ("--optimizer.lr abc", "--optimizer.lr abc: expected float"),
        ("--lr_scheduler.pct_start abc", "--lr_scheduler.pct_start abc: expected float"),
        (
            f"--data {STRIPED} --data.stripes upright_",
            "--data.stripes upright_: expected auto, upright, level, did you mean upright?",
        ),
        (f"--data.stripes x --data {STRIPED}", "--data.stripes x: expected auto, upright, level"),
        ("--config typo.yaml", "trainer.max_epoch (in typo.yaml): no such setting, did you mean trainer.max_epochs?"),
        ("--list", "--list: no such option"),  # which only stands alone
    ],
)
def test_a_wrong_setting_is_named_with_what_would_work(
    words: str, expected: str, error_of: ErrorOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "typo.yaml", "trainer: {max_epoch: 3}\n")
    assert expected in error_of(*words.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--devics 2", "unrecognized arguments: --devics=2"),
        ("--optimizer.lr abc", "Problem with given class_path 'torch.optim.AdamW'"),
        ("--config typo.yaml", "Group 'trainer' does not accept option 'max_epoch'"),
    ],
)
def test_a_project_without_this_part_has_the_words_of_the_parser_in_one_line(
    words: str, expected: str, error_of: ErrorOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "typo.yaml", "trainer: {max_epoch: 3}\n")
    monkeypatch.setattr(cli, "hooks", lambda name: [] if name == "explain" else hooks(name))
    assert expected in error_of(*words.split())


def test_the_file_of_a_wrong_value_is_the_last_that_sets_it(tmp_path: Path) -> None:
    recipe = write(
        tmp_path / "a.yaml", "model: {class_path: Classifier}\ndata: {class_path: tests.toy.ToyData, size: 1}\n"
    )
    overlay = write(tmp_path / "b.yaml", "data: {init_args: {size: abc}}\n")
    for files in ([recipe, overlay], [overlay, recipe]):
        assert _origin("data.size", [], files) == f"data.size (in {overlay})"
