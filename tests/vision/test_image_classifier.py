"""What an image classifier adds to `Classifier`."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from src.vision.cnn import CNN
from src.vision.image_classifier import ImageClassifier
from tests.conftest import trainer


def test_weights_of_convolutions_are_channels_last() -> None:
    task = ImageClassifier(net=CNN(width=4, hidden=8))
    assert task.net.conv2.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")
def test_a_checkpoint_rebuilds_a_task_built_in_python(tmp_path: Path) -> None:
    task = ImageClassifier(net=CNN(width=8, dropout=0.25), loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    images, targets = torch.randn(20, 1, 28, 28), torch.arange(20) % 10
    run = trainer(tmp_path, max_epochs=1)
    run.fit(task, DataLoader(TensorDataset(images, targets), batch_size=10))
    path = tmp_path / "task.ckpt"
    run.save_checkpoint(path)
    loaded = ImageClassifier.load_from_checkpoint(path, weights_only=True).eval()
    assert isinstance(loaded.net, CNN)
    assert (loaded.net.width, loaded.net.dropout, loaded.loss.label_smoothing) == (8, 0.25, 0.1)
    assert torch.equal(loaded(images), task.eval()(images))
