"""For your own DataModule's test: `check_prepare(MyDataModule(), raw)`."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from src.engine.data.prepare import input_kind, normalise, pixel_statistics, prepare_inputs


class Probe(LightningModule):
    """Keeps the first test batch."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.batch = batch


def check_prepare(data: LightningDataModule, raw: Sequence[Any]) -> None:
    """Check that `prepare` gives for raw samples what the network gets for them in a test.

    Args:
        data: the DataModule.
        raw: the raw samples of its first test batch, or more, in order: PIL images, texts, rows (dicts) of a table, or
            what `read_file` returns.
    """
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, limit_test_batches=1, enable_checkpointing=False, **quiet)
    trainer.test(probe := Probe(), data, verbose=False)
    count = len(probe.batch[0])
    assert len(raw) >= count, f"the first test batch has {count} samples, and raw {len(raw)}"
    prepared, notes = prepare_inputs(data, raw[:count])
    if input_kind(data) == "image":
        prepared = (normalise(prepared[0], *pixel_statistics(data)),)
    elif hasattr(data, "features"):
        prepared = (data.features(*prepared),)
    for number, (found, expected) in enumerate(zip(prepared, probe.batch, strict=False)):
        torch.testing.assert_close(found, expected, msg=lambda why, at=number: f"input {at} of prepare: {why}")
    assert len(notes) == count
