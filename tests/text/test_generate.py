"""The command that writes text, as a user meets it."""

from pathlib import Path

import pytest
import torch

from src.engine.deploy.generating import generate
from src.engine.runs import runs
from src.engine.system.errors import InputError
from tests.conftest import fit, program
from tests.text.helpers import tiny_pretrained

TEXT = "To be, or not to be: that is the question. " * 40


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    (folder / "own.txt").write_text(TEXT)
    return folder


def own(folder: Path) -> tuple[str, ...]:
    words = (f"--data.path={folder / 'own.txt'}", f"--data.cache_dir={folder / 'cache'}", "--data.block_size=16")
    return (
        "--config=configs/text/shakespeare_gpt.yaml",
        "--trainer.max_steps=4",
        "--trainer.val_check_interval=4",
        *words,
    )


TINY = ("--model.net.d_model=16", "--model.net.num_heads=2", "--model.net.num_layers=1")


@pytest.fixture(scope="module")
def checkpoint(workplace: Path) -> str:
    return fit(workplace, *own(workplace), *TINY)


def written(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    generate(list(words))
    return capsys.readouterr().out


def test_a_text_is_continued_and_a_seed_repeats_it(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--ckpt_path", checkpoint, "--prompt", "To be", "--max_new_tokens", "40", "--temperature", "1.5")
    first = written(capsys, *words, "--seed", "1")
    assert first.startswith("To be")
    assert 40 <= len(first.encode()) <= 5 + 3 * 40 + 1
    assert written(capsys, *words, "--seed", "1") == first
    assert written(capsys, *words, "--seed", "2") != first
    assert written(capsys, *words) != written(capsys, *words)
    greedy = (*words, "--temperature", "0")
    assert written(capsys, *greedy) == written(capsys, *greedy) == written(capsys, *words, "--top_k", "1")


def test_without_a_checkpoint_the_best_of_the_newest_run_writes(
    workplace: Path, checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "ROOT", workplace)
    words = ("--prompt", "To be", "--max_new_tokens", "10", "--seed", "1")
    best = max((workplace / "logs").glob("*/*/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime)
    assert written(capsys, *words) == written(capsys, *words, "--ckpt_path", str(best))
    monkeypatch.setattr(runs, "ROOT", workplace / "nowhere")
    with pytest.raises(InputError, match=r"no run with a checkpoint in .*nowhere/logs: train one first"):
        generate(list(words))


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["bpe", "pretrained"])
def test_the_tokenizer_comes_from_the_checkpoint(
    tokenizer: str, workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if tokenizer == "bpe":
        options: tuple[str, ...] = (*TINY, "--data.tokenizer=bpe", "--data.max_vocab_size=300")
    else:
        folder = tiny_pretrained("gpt2", tmp_path)
        options = ("--model.net=PretrainedLM", f"--model.net.pretrained={folder}", "--optimizer=AdamW")
    path = fit(workplace, *own(workplace), *options)
    if tokenizer == "pretrained":
        (tmp_path / "gpt2").rename(tmp_path / "gone")
    text = written(capsys, "--ckpt_path", path, "--prompt", "to be", "--max_new_tokens", "30", "--seed", "1")
    assert text.startswith("to be")
    assert len(text) > 35  # more than a character a token
    assert torch.load(path, weights_only=True)["TextDataModule"]["tokenizer"].startswith("{")


@pytest.mark.slow
def test_it_streams_as_a_command(checkpoint: str) -> None:
    words = ("--ckpt_path", checkpoint, "--prompt", "Ünï", "--max_new_tokens", "5")
    done = program(*words, module="src.generate", REAL_INTERPRETER="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Ünï")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--ckpt_path missing.ckpt", "--ckpt_path missing.ckpt: no such file"),
        ("--ckpt_path text.ckpt", "--ckpt_path text.ckpt is not a checkpoint"),
        ("--ckpt_path {ckpt} --temprature 1", "--temprature: no such option, did you mean --temperature?"),
        ("--ckpt_path {ckpt} --temperature -1", "temperature -1.0 is out of range"),
        ("--ckpt_path {ckpt} --top_p 1.5", "top_p 1.5 is out of range"),
        ("--ckpt_path {ckpt} --top_k 0", "top_k 0 is out of range"),
        ("--ckpt_path {ckpt} --seed abc", "--seed: invalid int value: 'abc'"),
        ("--ckpt_path {ckpt} --seed -1", "--seed -1 is out of range: give 0 or more, below 2**63"),
        ("--ckpt_path {ckpt} --prompt \udcff", "--prompt is not UTF-8"),
        ("--ckpt_path {ckpt} --prompt=", "--prompt '' has no token in this model's tokenizer"),
        ("--ckpt_path {ckpt} more words", "more: no option takes it"),
    ],
)
def test_an_error_of_the_user_is_one_line(words: str, expected: str, checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    given = words.format(ckpt=checkpoint).replace("text.ckpt", str(tmp_path / "text.ckpt")).split()
    with pytest.raises(InputError) as error:
        generate(given)
    assert expected in str(error.value).replace(f"{tmp_path}/", "")


@pytest.mark.slow
def test_an_error_ends_the_command_with_code_2() -> None:
    done = program("--ckpt_path", "missing.ckpt", module="src.generate")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --ckpt_path missing.ckpt: no such file")
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_a_classifier_writes_no_text(toy_checkpoint: str) -> None:
    with pytest.raises(InputError, match="is of Classifier, which cannot generate"):
        generate(["--ckpt_path", toy_checkpoint, "--trust", "tests.toy"])


def test_help_lists_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        generate(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--ckpt_path", "--prompt", "--max_new_tokens", "--temperature", "--top_k", "--top_p", "--seed"):
        assert flag in shown
