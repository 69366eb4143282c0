"""Two processes train on images as one does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.engine.runs.processes import DDP, metrics, run_in, spy

EXACT = (
    "--config=configs/default.yaml",
    "--model.net=CNN",
    "--model.net.width=4",
    "--model.net.hidden=16",
    "--model.net.dropout=0",
    "--data.source=sample",
    "--data.max_shift=0",
    "--data.max_rotation=0",
    "--data.max_scale=0",
    "--max_epochs=1",
    "--precision=64-true",
)


@pytest.mark.slow
def test_two_processes_train_on_images_as_one_does(train: Callable[..., Run], tmp_path: Path) -> None:
    one = train(*EXACT, *spy(tmp_path / "one.json"))
    run_in(tmp_path / "two", *EXACT, *DDP, *spy(tmp_path / "two.json"))
    losses, others = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert len(losses) == 32  # the last batch has 32 images, not 128
    assert others == pytest.approx(losses, rel=1e-9)
    for name in ("test/loss", "test/acc", "test/f1", "val/loss", "train/loss", "train/acc"):
        assert metrics(tmp_path / "two")[name] == pytest.approx(one.metrics[name], rel=1e-6)
