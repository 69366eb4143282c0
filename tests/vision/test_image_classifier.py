import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from src import ROOT
from src.engine.system.errors import InputError
from src.vision.cnn import CNN
from src.vision.image_classifier import ImageClassifier
from src.vision.mlp import MLP
from tests.conftest import trainer


def batches(size: int, *, count: int = 20) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 1, 28, 28, generator=generator)
    targets = torch.randint(10, (count,), generator=generator)
    return DataLoader(TensorDataset(images, targets), batch_size=size)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_training_on_one_batch_lowers_the_loss(loss: nn.Module) -> None:
    torch.manual_seed(0)
    task = ImageClassifier(net=CNN(width=4, hidden=16), loss=loss)
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)
    batch = next(iter(batches(20)))
    losses = []
    for _ in range(30):
        value, _ = task.step((batch[0], batch[1]))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0] / 2


def test_metrics_equal_a_manual_computation(tmp_path: Path) -> None:
    task = ImageClassifier(net=MLP(hidden=8))
    loader = batches(7)  # 20 samples in batches of 7, 7 and 6: a mean of batch means would be wrong
    (found,) = trainer(tmp_path).test(task, loader, verbose=False)

    images, targets = loader.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = task(images)
    labels = logits.argmax(dim=1)
    scores = []
    for label in range(10):
        hits = ((labels == label) & (targets == label)).sum().item()
        wrong = ((labels == label) ^ (targets == label)).sum().item()
        if hits + wrong:
            scores.append(2 * hits / (2 * hits + wrong))
    assert found["test/acc"] == pytest.approx((labels == targets).float().mean().item())
    assert found["test/f1"] == pytest.approx(sum(scores) / len(scores))
    assert found["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)


def test_mean_squared_error_uses_one_hot_targets(tmp_path: Path) -> None:
    task = ImageClassifier(net=MLP(hidden=8), loss=nn.MSELoss())
    loader = batches(20)
    (found,) = trainer(tmp_path).test(task, loader, verbose=False)
    images, targets = loader.dataset.tensors  # type: ignore[attr-defined]
    expected = (task(images) - torch.eye(10)[targets]).square().mean().item()
    assert found["test/loss"] == pytest.approx(expected, rel=1e-5)


def test_predictions_are_labels_and_probabilities() -> None:
    task = ImageClassifier(net=CNN(width=2)).eval()
    images = torch.randn(6, 1, 28, 28)
    predicted = task.predict_step((images, torch.zeros(6)), 0)
    assert predicted["probabilities"].shape == (6, 10)
    assert torch.allclose(predicted["probabilities"].sum(dim=1), torch.ones(6))
    assert torch.equal(predicted["labels"], task(images).argmax(dim=1))
    assert torch.equal(predicted["labels"], task.predict_step(images, 0)["labels"])


def test_a_network_without_num_classes_is_an_error_unless_it_is_given() -> None:
    with pytest.raises(InputError, match="Sequential has no attribute num_classes"):
        ImageClassifier(net=nn.Sequential())


def test_a_checkpoint_rebuilds_a_task_built_in_python_in_a_new_process(tmp_path: Path) -> None:
    task = ImageClassifier(net=CNN(width=8, dropout=0.25), loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(task, batches(10))
    path = tmp_path / "task.ckpt"
    fit.save_checkpoint(path)
    torch.save(task.eval()(torch.ones(2, 1, 28, 28)), tmp_path / "logits.pt")
    code = f"""
import torch
from src.vision.image_classifier import ImageClassifier
checkpoint = torch.load({str(path)!r}, weights_only=True)
def check(value):
    if isinstance(value, dict):
        for item in value.values(): check(item)
    elif isinstance(value, (list, tuple)):
        for item in value: check(item)
    else:
        assert value is None or isinstance(value, (torch.Tensor, bool, int, float, str)), type(value)
check(checkpoint)
task = ImageClassifier.load_from_checkpoint({str(path)!r}).eval()
assert (task.net.width, task.net.dropout, task.loss.label_smoothing) == (8, 0.25, 0.1)
logits = torch.load({str(tmp_path / "logits.pt")!r}, weights_only=True)
assert torch.equal(task(torch.ones(2, 1, 28, 28)), logits)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class NetWithoutAttributes(nn.Module):
    """A network that does not store its argument, so a checkpoint cannot rebuild it."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(784, 784) for _ in range(depth - 1))
        self.head = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_a_network_that_a_checkpoint_cannot_rebuild_gives_a_warning_and_can_be_passed(tmp_path: Path) -> None:
    task = ImageClassifier(net=NetWithoutAttributes(depth=3), num_classes=10)
    fit = trainer(tmp_path, max_epochs=1)
    with pytest.warns(UserWarning, match=r"NetWithoutAttributes cannot be read back.* the checkpoint with net="):
        fit.fit(task, batches(10))
    fit.save_checkpoint(tmp_path / "task.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "task.ckpt", net=NetWithoutAttributes(depth=3))
    assert torch.equal(loaded.net.head.weight, task.net.head.weight)
