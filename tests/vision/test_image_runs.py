"""Runs on images: pictures, messages, waiting."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.engine.cli.cli import StarterCLI
from src.engine.deploy.predicting import predict
from src.engine.tensorboard.network_pictures import MAX_IMAGES
from src.engine.training import deferred_metrics
from tests.conftest import Run, fit, pictures
from tests.tasks.waits import LIMITS, check_that_only_log_steps_wait

Train = Callable[..., Run]
CNN = ("--config=configs/default.yaml", "--model.net=CNN", "--model.net.width=4", "--model.net.hidden=8")
STILL = ("--data.max_shift=0", "--data.max_rotation=0", "--data.max_scale=0")


def first_batch(run: Run) -> Any:
    """The pixels of the first batch of digits in TensorBoard."""
    events = EventAccumulator(str(run.folder), size_guidance={"images": 0}).Reload()
    assert "network/filters of the first layer" in events.Tags()["images"]
    (image,) = events.Images("network/a batch after augmentation")
    return np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("L"))


@pytest.mark.slow
def test_the_first_batch_is_shown_after_augmentation(train: Train) -> None:
    words = ("fit", *CNN, "--max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1")
    still, again, moved = (first_batch(train(*words, *more)) for more in (STILL, STILL, ()))
    assert still.shape == (MAX_IMAGES // 8 * 30, 8 * 30)
    assert (still == again).all()
    assert (still != moved).mean() > 0.05


@pytest.mark.slow
def test_only_log_steps_wait_for_the_device_with_augmentation(
    parse: Callable[..., StarterCLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Metrics are due between log steps, but must not wait there.
    monkeypatch.setattr(deferred_metrics, "STEPS_PER_UPDATE", 7)
    check_that_only_log_steps_wait(parse("fit", *CNN, *LIMITS, "--data.batch_size=16"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_image_files_train_and_are_predicted_with_weights_of_any_type(precision: str, tmp_path: Path) -> None:
    folder, option = pictures(tmp_path / "pictures"), f"--precision={precision}"
    words = ("--config=configs/vision/image_folder.yaml", "--model.net=CNN", "--model.net.width=4", "--max_epochs=1")
    checkpoint = fit(tmp_path, *words, "--data.image_size=16", f"--data.path={folder}", option)
    output = tmp_path / "out.csv"
    given = ["--ckpt_path", checkpoint, folder, "--truth", "folder", "--output", str(output)]
    assert predict([*given, option, "--accelerator=cpu"]) == 0
    assert output.read_text().count(".png,") >= 10


def test_a_quiet_run_still_says_that_sample_data_is_not_mnist(train: Train) -> None:
    messages = train("fit", *CNN, "--quiet", "--fast_dev_run").messages
    assert [message for message in messages if "SAMPLE DATA, NOT MNIST" in message]
    assert not [message for message in messages if "Running in `fast_dev_run` mode" in message]
