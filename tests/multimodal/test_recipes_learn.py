"""The recipe for images and captions learns: a few steps on little data beat chance by far."""

from collections.abc import Callable

import pytest

from tests.conftest import Run


@pytest.mark.slow
def test_unseen_captions_classify_digits(train: Callable[..., Run]) -> None:
    data = ("--data.source=sample", "--data.batch_size=32")
    short = ("--max_epochs=1", "--trainer.limit_train_batches=80", "--trainer.limit_val_batches=4")
    run = train("fit", "--config=configs/multimodal/mnist_clip.yaml", *data, *short)
    assert run.metrics["val/acc"] > 0.5  # chance: 0.1
    assert run.metrics["val/text_to_image_r1"] > 0.5
