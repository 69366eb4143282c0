"""Runs on texts: pictures, logged values, waiting."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.engine.cli.cli import StarterCLI
from src.engine.training import deferred_metrics
from src.engine.training.optim.groups import decay_groups
from src.engine.training.optim.muon import MuonWithAdamW
from src.text.gpt import GPT
from tests.conftest import Run, own_text
from tests.tasks.waits import LIMITS, check_that_only_log_steps_wait

Train = Callable[..., Run]
SMALL = ("--model.net.d_model=16", "--model.net.num_heads=2", "--model.net.num_layers=1")


@pytest.fixture
def writing(tmp_path: Path) -> tuple[str, ...]:
    """A language model trained by Muon on a small text."""
    data = (f"--data.path={own_text(tmp_path)}", f"--data.cache_dir={tmp_path / 'cache'}", "--data.block_size=16")
    return ("--config=configs/text/shakespeare_gpt_fast.yaml", *SMALL, *data, "--trainer.callbacks=null")


def shown(run: Run) -> Any:
    return EventAccumulator(str(run.folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0}).Reload()


@pytest.mark.slow
def test_misclassified_texts_are_listed_with_their_labels(train: Train, tmp_path: Path) -> None:
    rows = [f"{'abc'[number % 3] * (1 + number % 7)},{'xyz'[number % 3]}" for number in range(90)]
    (tmp_path / "own.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    words = ("--config=configs/text/language_id.yaml", f"--data.path={tmp_path / 'own.csv'}", *SMALL, "--max_epochs=1")
    run = train(*words)
    with (run.folder / "confusion_matrix.csv").open() as file:
        header, *found = csv.reader(file)
    assert header[1:] == [row[0] for row in found] == ["x", "y", "z"]
    counts = torch.tensor([[int(count) for count in row[1:]] for row in found])
    assert counts.sum(dim=1).tolist() == [3, 3, 3]
    assert counts.diagonal().sum().item() / 9 == pytest.approx(run.metrics["test/acc"])
    events = shown(run)
    assert "test/confusion matrix" in events.Tags()["images"]
    table = events.Tensors("test/worst mistakes/text_summary")[0].tensor_proto.string_val[0].decode()
    mistakes = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert len(mistakes) == 9 - counts.diagonal().sum()
    for _, true, taken, text in mistakes:
        assert text == "abc"["xyz".index(true)] * len(text)  # without its padding
        assert taken != true
    # The graph of a transformer is drawn, and there are no pictures of what it is given.
    assert b"blocks" in events.Graph().SerializeToString()
    assert not [tag for tag in events.Tags()["images"] if tag.startswith("network/")]


def test_a_language_model_run_uses_muon_and_logs_tokens_per_second(train: Train, writing: tuple[str, ...]) -> None:
    steps = ("--trainer.max_steps=4", "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=4")
    run = train(*writing, *steps)
    (optimizer,) = run.cli.trainer.optimizers
    assert isinstance(optimizer, MuonWithAdamW)
    assert {group["hidden"] for group in optimizer.param_groups} == {True, False}
    metrics = run.metrics
    assert metrics["speed/tokens_per_second"] == pytest.approx(16 * metrics["speed/samples_per_second"], rel=1e-4)
    assert metrics["test/loss"] > 0
    assert shown(run).Tags()["images"] == []
    assert not (run.folder / "confusion_matrix.csv").exists()


@pytest.mark.slow
def test_only_log_steps_of_a_language_model_wait_for_the_device(
    parse: Callable[..., StarterCLI], writing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Metrics are due between log steps, but must not wait there.
    monkeypatch.setattr(deferred_metrics, "STEPS_PER_UPDATE", 7)
    words = ("--trainer.val_check_interval=null", "--data.batch_size=2")
    check_that_only_log_steps_wait(parse("fit", *writing, *LIMITS, *words))


@pytest.mark.parametrize("tie_weights", [False, True])
def test_muon_takes_the_matrices_of_the_blocks(tie_weights: bool) -> None:
    net = GPT(20, 8, d_model=8, num_heads=2, num_layers=1, tie_weights=tie_weights)
    groups = decay_groups(net)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    hidden = {id(p) for group in groups if group["hidden"] for p in group["params"]}
    assert hidden == {id(p) for name, p in net.named_parameters() if name.startswith("blocks") and p.ndim == 2}
    assert len(hidden) == 4
