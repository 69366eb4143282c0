from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from src.callbacks import progress_bar
from src.callbacks.progress_bar import PacedProgressBar
from src.cli import StarterCLI


def test_every_run_has_one_unless_it_brings_another_or_none(tmp_path: Any) -> None:
    words = ("--model.net=MLP", "--accelerator=cpu", f"--trainer.default_root_dir={tmp_path}")
    for more, expected in (
        ((), PacedProgressBar),
        (("--trainer.callbacks+=TQDMProgressBar",), TQDMProgressBar),
        (("--trainer.enable_progress_bar=false",), type(None)),
    ):
        cli = StarterCLI([*words, *more], 0.0)
        assert type(cli.trainer.progress_bar_callback) is expected


@pytest.mark.parametrize("stage", ["train", "validation", "test", "predict"])
def test_it_moves_a_few_times_a_second_and_at_the_last_batch(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    now, moved = [100.0], []
    monkeypatch.setattr(progress_bar, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    name = f"on_{stage}_batch_end"
    monkeypatch.setattr(RichProgressBar, name, lambda self, *args: moved.append(args[4]))
    short = {"validation": "val"}.get(stage, stage)
    total = f"total_{short}_batches" if stage == "train" else f"total_{short}_batches_current_dataloader"
    monkeypatch.setattr(RichProgressBar, total, 100)
    bar = PacedProgressBar()
    for batch_idx in range(100):
        getattr(bar, name)(None, None, None, None, batch_idx)
        now[0] += 0.01
    assert moved == [0, 25, 50, 75, 99]


def test_the_bar_ends_full_and_shows_the_loss(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--model.net=MLP", "--accelerator=cpu", "--data.source=sample", "--max_epochs=1"]
    StarterCLI([*words, f"--trainer.default_root_dir={tmp_path}"], 0.0).run()
    output = capsys.readouterr().out
    assert "32/32" in output
    assert "train/loss_step:" in output
