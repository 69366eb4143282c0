"""A class for each pixel: losses, scores by class, masks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from src.engine.system.errors import InputError
from src.engine.tensorboard.figures import class_colours
from src.tasks.segmentation import DiceLoss, SegmentationTask, mask_figure
from tests.conftest import trainer

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(10, 1, 6, 5, generator=GENERATOR)
Y = torch.randint(0, 3, (10, 6, 5), generator=GENERATOR)
Y[:, 0] = -100
Y[3] = -100  # an image of which nothing is known


def net() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(1, 4, 3, padding=1)


def measured(folder: Path, loss: nn.Module | None = None) -> tuple[Tensor, dict[str, Any]]:
    """Logits, and what the test measures; class 3 occurs nowhere."""
    task = SegmentationTask(net(), loss, num_classes=4)
    with torch.no_grad():
        task.net.bias[3] = -1000  # type: ignore[index, operator]
    (found,) = trainer(folder).test(task, DataLoader(TensorDataset(X, Y), 4), verbose=False)
    return task(X).detach(), dict(found)


def test_scores_are_those_of_scikit_learn_over_the_known_pixels(tmp_path: Path) -> None:
    logits, found = measured(tmp_path)
    known = Y != -100
    preds = logits.argmax(1)[known]
    assert found["test/acc"] == pytest.approx((preds == Y[known]).float().mean().item())
    iou = jaccard_score(Y[known], preds, average=None)
    assert found["test/iou"] == pytest.approx(iou.mean(), rel=1e-5)
    assert [found[f"test/iou_{label}"] for label in range(3)] == pytest.approx(iou.tolist(), rel=1e-5)
    assert "test/iou_3" not in found
    assert found["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, Y).item(), rel=1e-5)


def dice(logits: Tensor, targets: Tensor) -> float:
    """The loss of one image, class by class and pixel by pixel."""
    scores = []
    for label in range(logits.shape[0]):
        overlap = total = 0.0
        for pixel in (targets != -100).nonzero().tolist():
            probability = logits[:, pixel[0], pixel[1]].softmax(0)[label].item()
            is_label = float(targets[pixel[0], pixel[1]] == label)
            overlap, total = overlap + probability * is_label, total + probability + is_label
        scores.append((2 * overlap + 1) / (total + 1))
    return 1 - sum(scores) / len(scores)


def test_dice_is_its_formula_averaged_over_images_and_classes(tmp_path: Path) -> None:
    logits, found = measured(tmp_path, DiceLoss())
    losses = [dice(logits[number], Y[number]) for number in range(10) if number != 3]
    assert DiceLoss()(logits, Y).item() == pytest.approx(sum(losses) / 9, rel=1e-5)
    assert found["test/loss"] == pytest.approx(sum(losses) / 9, rel=1e-5)
    perfect = nn.functional.one_hot(Y.clamp(min=0), 4).movedim(-1, 1) * 100.0
    assert DiceLoss()(perfect, Y).item() == pytest.approx(0, abs=1e-4)
    with pytest.raises(RuntimeError):  # -1 is no class; it must not count as class 0
        DiceLoss()(logits, Y.clamp(min=-1))


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), DiceLoss()])
def test_a_batch_of_which_nothing_is_known_has_loss_and_gradient_0(loss: nn.Module) -> None:
    task = SegmentationTask(net(), loss, num_classes=4)
    value, seen = task.step((X, torch.full_like(Y, -100)))
    value.backward()  # type: ignore[no-untyped-call]
    assert (value.item(), int(seen["weight"])) == (0, 0)
    assert not any(one.grad.any() for one in task.net.parameters())  # type: ignore[union-attr]


def test_images_may_differ_in_size_from_batch_to_batch(tmp_path: Path) -> None:
    task = SegmentationTask(net(), num_classes=4)
    parts = [(X, Y), (X[:, :, :4], Y[:, :4]), (X[:, :, :4], Y[:, :4])]
    (found,) = trainer(tmp_path).test(task, DataLoader(parts, batch_size=None), verbose=False)  # type: ignore[arg-type]
    right = sum(int((task(x).argmax(1) == y).sum()) for x, y in parts)
    assert found["test/acc"] == pytest.approx(right / sum(int((y != -100).sum()) for _, y in parts))


def test_what_does_not_fit_is_one_line() -> None:
    task = SegmentationTask(net(), num_classes=4)
    with pytest.raises(InputError, match=r"Conv2d returns shape \(10, 4, 6, 5\) for targets \(10, 1, 6, 5\)"):
        task.step((X, Y[:, None]))
    for _ in range(2):
        with pytest.raises(InputError, match="target 255 does not fit SegmentationTask: give 0 to 3, or -100"):
            task.step((X, Y.clamp(min=0) * 255))
        task.check(task.step((X, Y)))  # the second time it is a later batch
    with pytest.raises(InputError, match=r"targets are torch\.uint8, SegmentationTask takes class numbers, int64"):
        task.step((X, Y.byte()))
    with pytest.raises(InputError, match=r"MSELoss takes one class per input, not \(10, 6, 5\): use CrossEntropyLoss"):
        SegmentationTask(net(), nn.MSELoss(), num_classes=4).step((X, Y))


def test_a_row_has_the_mask_and_the_share_of_each_class() -> None:
    mask = torch.tensor([[[0, 1], [1, 1]]])
    (row,) = SegmentationTask(net(), num_classes=4).prediction_rows({"mask": mask}, ["a", "b", "c", "d"])
    assert torch.equal(row["mask"], mask[0])
    assert row["areas"] == {"a": 0.25, "b": 0.75, "c": 0.0, "d": 0.0}


def test_the_figure_shows_input_truth_and_prediction_and_leaves_unknown_pixels_white() -> None:
    samples = [{"inputs": torch.rand(3, 6, 5), "target": one, "preds": one.clamp(min=0)} for one in Y[:2]]
    axes = mask_figure(samples, list("abcd")).axes
    assert [one.get_title() for one in axes] == ["input", "true", "predicted", "", "", ""]
    shown = torch.tensor(axes[1].images[0].get_array().filled(-100.0))
    assert torch.equal(shown.long(), Y[0])
    assert axes[1].images[0].get_clim() == axes[2].images[0].get_clim() == (0, 3)


def test_each_class_of_a_mask_has_a_colour_of_its_own_and_a_name() -> None:
    for count in (2, 5, 20, 21, 150):
        colours = class_colours(count)
        scaled = (torch.arange(count) - colours["vmin"]) / (colours["vmax"] - colours["vmin"])
        assert len({colours["cmap"](float(value)) for value in scaled}) == count
    sample = {"inputs": torch.rand(1, 4, 4), "target": torch.zeros(4, 4).long(), "preds": torch.ones(4, 4).long()}
    (legend,) = mask_figure([sample], ["sky", "road"]).legends
    assert [text.get_text() for text in legend.get_texts()] == ["sky", "road"]
