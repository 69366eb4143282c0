"""For the tests of your own DataModule."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn


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
    # Lazy imports: a project without predict has no deploy, which other checks do not need.
    from src.engine.data.pixels import normalise, pixel_statistics
    from src.engine.deploy.prepare import kind_of, prepare_inputs

    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", devices=1, limit_test_batches=1, enable_checkpointing=False, **quiet)
    trainer.test(probe := Probe(), data, verbose=False)
    count = len(probe.batch[0])
    assert len(raw) >= count, f"the first test batch has {count} samples, and raw {len(raw)}"
    prepared, notes = prepare_inputs(data, raw[:count])
    if kind_of(data) == "image":
        prepared = (normalise(prepared[0], *pixel_statistics(data)),)
    elif isinstance(features := getattr(data, "features", None), nn.Module):
        prepared = (features(*prepared),)
    for number, (found, expected) in enumerate(zip(prepared, probe.batch, strict=False)):
        torch.testing.assert_close(found, expected, msg=lambda why, at=number: f"input {at} of prepare: {why}")
    assert len(notes) == count


def check_folds(parts: Callable[[int | None], Sequence[Sequence[Any]]], folds: int) -> None:
    """Check that folds share out training and validation part, without copies in both, and leave the test part alone.

    Args:
        parts: the samples of training, validation and test part for a fold, from 1, or for None. Any values that are
            equal for equal samples, such as paths.
        folds: number of folds.
    """
    usual = [Counter(part) for part in parts(None)]
    validated: Counter[Any] = Counter()
    for fold in range(1, folds + 1):
        train, val, test = (Counter(part) for part in parts(fold))
        assert test == usual[2], "the test part is another one"
        assert train + val == usual[0] + usual[1], "samples are lost or added"
        assert not train.keys() & val.keys(), "samples are in both parts"
        validated += val
    assert validated == usual[0] + usual[1], "a sample is not in exactly one fold"
