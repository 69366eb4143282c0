"""Toy images changed on the device, and what a figure says."""

from typing import Any

from matplotlib.cbook import is_math_text

from tests.toy import Batch, ToyData


class NegativeData(ToyData):
    """Toy images that are negated once a batch is on its device."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        images, targets = batch
        return -images, targets


class FlatData(ToyData):
    """Images as rows of 64 pixels."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        images, targets = batch
        return images.flatten(1), targets


FLAT = ("--data=tests.engine.tensorboard.toys.FlatData", "--model.net=tests.toy.ToyMLP")


def drawn(texts: list[Any]) -> list[str]:
    """Texts as they are drawn; none is a formula."""
    assert [text.get_text() for text in texts if is_math_text(text.get_text())] == []
    return [text.get_text().replace(r"\$", "$") for text in texts]
