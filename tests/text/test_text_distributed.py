"""Two processes train on texts as one does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src import ROOT
from src.engine.deploy.exporting import export
from src.engine.deploy.rebuild import load_model
from src.engine.runs.checkpoint import read_checkpoint
from tests.conftest import Run
from tests.engine.runs.processes import DDP, metrics, only_run, run_in, spy

Train = Callable[..., Run]

WRITER = (
    f"--config={ROOT / 'configs' / 'text' / 'shakespeare_gpt_fast.yaml'}",
    "--model.net.d_model=16",
    "--model.net.num_heads=2",
    "--model.net.num_layers=2",
    "--data.block_size=16",
    "--data.batch_size=4",
    "--trainer.val_check_interval=5",
    "--trainer.max_steps=10",
    "--trainer.callbacks.max_new_tokens=3",
    "--precision=32-true",
)
READER = (
    f"--config={ROOT / 'configs' / 'text' / 'language_id.yaml'}",
    "--model.net.d_model=8",
    "--model.net.num_heads=2",
    "--model.net.num_layers=1",
    "--model.net.dropout=0",
    "--max_epochs=1",
    "--precision=32-true",
)


@pytest.fixture
def writing(tmp_path: Path) -> tuple[str, ...]:
    """A small language model on a small text."""
    (tmp_path / "text.txt").write_text("it was the best of times, it was the worst of times\n" * 150)
    return (*WRITER, f"--data.path={tmp_path / 'text.txt'}", f"--data.cache_dir={tmp_path}")


def losses(path: Path) -> list[float]:
    found: list[float] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_two_processes_train_a_language_model_as_one_does(
    train: Train, tmp_path: Path, writing: tuple[str, ...]
) -> None:
    one = train(*writing, *spy(tmp_path / "one.json"))
    run_in(tmp_path / "two", *writing, *DDP, *spy(tmp_path / "two.json"))
    assert len(losses(tmp_path / "one.json")) == 10
    assert losses(tmp_path / "two.json") == pytest.approx(losses(tmp_path / "one.json"), rel=1e-5)
    tokens = len(one.cli.datamodule.test_set.tokens) - 1
    assert -(-tokens // 16) % 4 == 1  # one process has nothing in the last batch
    assert metrics(tmp_path / "two")["test/loss"] == pytest.approx(one.metrics["test/loss"], rel=1e-4)


@pytest.mark.slow
def test_two_processes_train_a_text_classifier_as_one_does(train: Train, tmp_path: Path) -> None:
    rows = [f"{'abc'[i % 3] * (i % 7 + 1)},{'xyz'[i % 3 if i % 5 else 0]}" for i in range(101)]
    for name, part in (("train", rows[:90]), ("test", rows)):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *part]))
    paths = {"path": "train", "val_path": "train", "test_path": "test"}
    words = (*READER, *(f"--data.{name}={tmp_path / table}.csv" for name, table in paths.items()))
    words = (*words, "--data.batch_size=20")
    one = train(*words, *spy(tmp_path / "one.json"))
    run_in(tmp_path / "two", *words, *DDP, *spy(tmp_path / "two.json"))
    assert len(losses(tmp_path / "one.json")) == 5
    assert losses(tmp_path / "two.json") == pytest.approx(losses(tmp_path / "one.json"), rel=1e-5)
    for name in ("test/loss", "test/acc", "test/f1"):
        assert metrics(tmp_path / "two")[name] == pytest.approx(one.metrics[name], rel=1e-4)
    table = (only_run(tmp_path / "two") / "confusion_matrix.csv").read_text()
    assert sum(int(count) for line in table.splitlines()[1:] for count in line.split(",")[1:]) == 101


@pytest.mark.slow
def test_fsdp2_trains_a_language_model_that_becomes_one_file(
    train: Train, tmp_path: Path, writing: tuple[str, ...]
) -> None:
    exact = (*writing, "--optimizer=AdamW", "--optimizer.lr=1e-3", "--lr_scheduler=null")
    fsdp2 = (f"--config={ROOT / 'configs' / 'strategy' / 'fsdp2.yaml'}", "--trainer.strategy.gather_dtype=float32")
    one = train("fit", *exact, *spy(tmp_path / "one.json"))
    run_in(tmp_path / "two", "fit", *exact, *fsdp2, "--devices=2", *spy(tmp_path / "two.json"))
    assert losses(tmp_path / "two.json") == pytest.approx(losses(tmp_path / "one.json"), rel=1e-4)
    whole = tmp_path / "whole.ckpt"
    last = only_run(tmp_path / "two") / "checkpoints" / "last.ckpt"
    export(["--format=checkpoint", f"--ckpt_path={last}", f"--output={whole}"])
    paths = [str(whole), str(one.folder / "checkpoints" / "last.ckpt")]
    models = [load_model(read_checkpoint(path), "generate", path) for path in paths]
    tokens = torch.randint(0, 256, (2, 16))
    assert torch.allclose(models[0](tokens), models[1](tokens), atol=1e-4)
