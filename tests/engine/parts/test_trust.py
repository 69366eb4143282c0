"""Without the part `trust`, a checkpoint of someone else gives its weights only; with it, see `runs/test_trust.py`."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from src.engine.cli import resolved_checkpoint
from src.engine.runs import runs
from src.engine.system.hooks import hooks
from tests import toy
from tests.conftest import Run
from tests.spies import Payload

Train = Callable[..., Run]
NEW = f"--config={toy.RECIPE}"


@pytest.fixture
def recipe() -> tuple[str, ...]:
    """No recipe, so that it is the checkpoint's if that is of an own run."""
    return ()


@pytest.fixture(autouse=True)
def without_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        resolved_checkpoint, "hooks", lambda name: [] if name == "checked_configuration" else hooks(name)
    )


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_what_a_foreign_checkpoint_names_is_not_looked_up(
    train: Train, toy_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = torch.load(toy_checkpoint, weights_only=True)
    named = {"class_path": "imports_do_this.Model", "init_args": {"net": {"class_path": "imports_do_this.Net"}}}
    checkpoint["config"] = yaml.safe_dump({**yaml.safe_load(checkpoint["config"]), "model": named, "data": named})
    checkpoint["hyper_parameters"] = {"_class_path": "imports_do_this.Model", "net": named}
    torch.save(checkpoint, tmp_path / "foreign.ckpt")
    (tmp_path / "imports_do_this.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = train("test", NEW, f"--ckpt_path={tmp_path / 'foreign.ckpt'}")
    assert run.metrics["test/acc"] == 1
    assert run.cli.saved == {}
    assert not [line for line in run.messages if "its network is used" in line]
    assert "imports_do_this" not in sys.modules


def test_weights_that_do_not_fit_are_named_and_an_optimizer_of_the_command_line_is_not_ignored_without_a_word(
    train: Train, toy_checkpoint: str, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    checkpoint = shutil.copy(toy_checkpoint, tmp_path / "foreign.ckpt")
    line = error_of("test", NEW, f"--ckpt_path={checkpoint}", "--model.net.width=4")
    assert line.startswith("the model does not fit the weights of the checkpoint: net."), line
    run = train("fit", NEW, f"--ckpt_path={checkpoint}", "--max_epochs=5", "--optimizer.lr=0.5")
    said = "--optimizer.lr: learning rate and other numbers come from the checkpoint's state instead"
    assert [line for line in run.messages if line == said]


def test_code_in_a_checkpoint_is_refused(toy_checkpoint: str, tmp_path: Path, error_of: Callable[..., str]) -> None:
    checkpoint = torch.load(toy_checkpoint, weights_only=True)
    checkpoint["more"] = Payload(str(tmp_path / "marker"))
    torch.save(checkpoint, tmp_path / "foreign.ckpt")
    assert "holds more than tensors and plain values" in error_of(
        "test", NEW, f"--ckpt_path={tmp_path / 'foreign.ckpt'}"
    )
    assert not (tmp_path / "marker").exists()


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_in_logs_is_ones_own(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    first = train("fit", NEW, "--max_epochs=1", "--model.net=tests.toy.ToyMLP", "--model.net.hidden=9")
    path = first.folder / "checkpoints" / "last.ckpt"
    for given in (("--ckpt_path", str(path)), ("--run", str(first.folder))):
        assert train("test", *given).cli.model.net.hidden == 9
    again = train("fit", f"--run={first.folder}", "--ckpt_path=last", "--max_epochs=2").cli
    assert again.trainer.global_step == 2 * first.cli.trainer.global_step
    assert again.model.net.hidden == 9
    copy = tmp_path / "last.ckpt"
    copy.write_bytes(path.read_bytes())
    assert (
        train("test", NEW, "--ckpt_path", str(copy), "--model.net=tests.toy.ToyMLP", "--model.net.hidden=9").cli.saved
        == {}
    )
