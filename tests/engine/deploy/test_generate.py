"""The command that writes text, with any task that generates."""

import re

import pytest

from src import generate as command
from src.engine.deploy.generating import generate
from src.engine.system.errors import InputError
from tests.engine.deploy.served import of, one_line
from tests.engine.deploy.toys import ToyLanguageNet


def written(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """Standard output and error of the command."""
    capsys.readouterr()
    generate([*words, "--prompt", "to be", "--max_new_tokens", "40", "--temperature", "5"])
    return capsys.readouterr()


def test_a_text_is_continued_and_the_seed_that_is_said_repeats_it(
    toy_writer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, said = written(capsys, *of(toy_writer))
    assert text.startswith("to be")
    assert len(text) == 5 + 40 + 1
    found = re.fullmatch(r"--seed (\d+)\n", said)
    assert found is not None
    assert written(capsys, *of(toy_writer), "--seed", found[1]) == (text, "")
    assert written(capsys, *of(toy_writer), "--seed", "7")[0] != text


def test_a_prompt_that_is_too_long_says_what_is_used(
    toy_writer: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for size, line in ((4, "--prompt has 5 tokens, the model takes 4: the last 2 are used"), (5, "")):
        monkeypatch.setattr(ToyLanguageNet, "block_size", size, raising=False)
        assert written(capsys, *of(toy_writer), "--seed", "1")[1].strip() == line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--ckpt_path missing.ckpt", r"--ckpt_path missing\.ckpt: no such file"),
        ("--temprature 1", r"--temprature: no such option, did you mean --temperature\?"),
        ("--temperature -1", r"temperature -1\.0 is out of range"),
        ("--seed -1", r"--seed -1 is out of range: give 0 or more"),
        ("--seed abc", r"--seed: invalid int value: 'abc'"),
        ("more words", r"more: no option takes it"),
    ],
)
def test_what_cannot_work_ends_the_command_with_one_line(
    words: str, message: str, toy_writer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (*of(toy_writer), *words.split())
    assert re.search(message, one_line(command.main, monkeypatch, capsys, *given))


def test_a_checkpoint_of_a_classifier_writes_no_text(toy_checkpoint: str) -> None:
    with pytest.raises(InputError, match="is of Classifier, which cannot generate"):
        generate(of(toy_checkpoint))
