"""Several labels for each input: scores, unknown labels, thresholds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MultilabelPrecisionRecallCurve
from torchmetrics.functional.classification import multilabel_precision_recall_curve

from src.engine.system.errors import InputError
from src.tasks.classifier import WeightedCrossEntropy
from src.tasks.multi_label_classifier import MultiLabelClassifier, label_curves
from src.tasks.weighted_bce import WeightedBCE
from tests.conftest import trainer

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR)
Y = (X[:, :3] + torch.randn(60, 3, generator=GENERATOR) / 2 > 0).long()


def measured(folder: Path, y: torch.Tensor = Y, **options: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """Probabilities, and what the test measures."""
    torch.manual_seed(0)
    task = MultiLabelClassifier(nn.Linear(4, 3), num_classes=3, **options)
    with torch.no_grad():
        task.net.weight.copy_(torch.eye(3, 4))  # type: ignore[operator, union-attr]
    (found,) = trainer(folder).test(task, DataLoader(TensorDataset(X, y), 9), verbose=False)
    return task.predictions(X)["probabilities"].detach(), dict(found)


def test_scores_are_those_of_scikit_learn(tmp_path: Path) -> None:
    probabilities, found = measured(tmp_path, threshold=0.6)
    assert found["test/map"] == pytest.approx(average_precision_score(Y, probabilities, average="macro"), rel=1e-5)
    f1 = f1_score(Y, probabilities > 0.6, average=None)
    assert found["test/f1"] == pytest.approx(f1.mean(), rel=1e-5)
    assert [found[f"test/f1_{label}"] for label in "012"] == pytest.approx(f1.tolist(), rel=1e-5)
    expected = nn.functional.binary_cross_entropy(probabilities, Y.float())
    assert found["test/loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_unknown_labels_are_left_out_one_by_one(tmp_path: Path, dtype: torch.dtype) -> None:
    y = Y.clone().to(dtype)
    y[::4, 1] = -100 if dtype == torch.int64 else torch.nan
    y[:9] = -100  # the whole first batch
    known = y >= 0
    probabilities, found = measured(tmp_path, y)
    parts = [(Y[known[:, at], at], probabilities[known[:, at], at]) for at in range(3)]
    assert found["test/map"] == pytest.approx(sum(average_precision_score(*part) for part in parts) / 3, rel=1e-5)
    assert found["test/f1"] == pytest.approx(sum(f1_score(a, b > 0.5) for a, b in parts) / 3, rel=1e-5)
    expected = nn.functional.binary_cross_entropy(probabilities[known], Y[known].float())
    assert found["test/loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("value", [0, -100])
def test_a_label_that_does_not_occur_is_left_out_of_the_means(tmp_path: Path, value: int) -> None:
    y = Y.clone()
    y[:, 1] = value
    probabilities, found = measured(tmp_path, y)
    kept = [(Y[:, at], probabilities[:, at]) for at in (0, 2)]
    assert found["test/map"] == pytest.approx(sum(average_precision_score(*part) for part in kept) / 2, rel=1e-5)
    assert found["test/f1"] == pytest.approx(sum(f1_score(a, b > 0.5) for a, b in kept) / 2, rel=1e-5)
    _, found = measured(tmp_path, torch.full_like(Y, value))
    assert found["test/map"] == found["test/f1"] == 0


def test_an_unknown_label_gives_no_gradient() -> None:
    task = MultiLabelClassifier(nn.Linear(4, 3), num_classes=3)
    y = Y.clone()
    y[:, 2] = -100
    task.step((X, y))[0].backward()  # type: ignore[no-untyped-call]
    gradient = task.net.weight.grad
    assert gradient[:2].all()  # type: ignore[index, union-attr]
    assert not gradient[2].any()  # type: ignore[index, union-attr]


def test_what_does_not_fit_is_one_line() -> None:
    task = MultiLabelClassifier(nn.Linear(4, 3), num_classes=3)
    with pytest.raises(InputError, match=r"Linear returns logits \(60, 3\) for targets \(60,\): .* needs \(60, 3\)"):
        task.step((X, Y[:, 0]))
    task.check(task.step((X, Y.bool())))
    for wrong, name in ((2 * Y - 1, "-1"), (2 * Y, "2"), (255 * Y.float(), "255")):  # also after the first batch
        with pytest.raises(InputError, match=f"target {name} does not fit MultiLabelClassifier: give 1 where a label"):
            task.step((X, wrong))
    with pytest.raises(InputError, match=r"threshold 1 is out of range: give a probability between 0 and 1"):
        MultiLabelClassifier(nn.Linear(4, 3), num_classes=3, threshold=1)
    with pytest.raises(InputError, match="Linear has no attribute num_classes: pass num_classes to MultiLabel"):
        MultiLabelClassifier(nn.Linear(4, 3))


def test_a_row_lists_the_labels_above_the_threshold() -> None:
    task = MultiLabelClassifier(nn.Linear(4, 2), num_classes=2, threshold=0.75)
    rows = task.prediction_rows({"probabilities": torch.tensor([[0.875, 0.75], [0.5, 0.25]])}, ["cat", "dog"])
    assert rows == [
        {"labels": ["cat"], "probabilities": {"cat": 0.875, "dog": 0.75}},
        {"labels": [], "probabilities": {"cat": 0.5, "dog": 0.25}},
    ]


def test_the_figure_is_the_precision_recall_curve_of_each_label(tmp_path: Path) -> None:
    probabilities, _ = measured(tmp_path)
    task = MultiLabelClassifier(nn.Linear(4, 3), num_classes=3)
    task.metrics.unlogged["curves"].update(probabilities, Y)  # type: ignore[operator]
    (axes,) = label_curves(task.metrics.unlogged["curves"].confmat, ["a", "b", "c"])["precision and recall"].axes  # type: ignore[arg-type]
    assert [line.get_label() for line in axes.lines] == ["a", "b", "c"]
    precision, recall, _ = multilabel_precision_recall_curve(probabilities, Y, 3, thresholds=101)
    assert torch.allclose(torch.tensor(axes.lines[2].get_xdata()).float(), recall[2, :-1])
    found = recall[2, :-1] > 0
    assert torch.allclose(torch.tensor(axes.lines[2].get_ydata()).float()[found], precision[2, :-1][found])


def test_a_network_that_averages_probabilities_of_which_one_applies_has_one_label() -> None:
    class Averaging(nn.Linear):
        average = "probabilities"

    with pytest.raises(
        InputError, match=r"^Averaging averages softmax probabilities, .*: give --model\.net\.average logits$"
    ):
        MultiLabelClassifier(Averaging(4, 3), num_classes=3)
    assert MultiLabelClassifier(Averaging(4, 1), num_classes=1).net
    Averaging.average = "logits"
    assert MultiLabelClassifier(Averaging(4, 3), num_classes=3).net


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), WeightedCrossEntropy([1.0, 1.0, 5.0])])
def test_a_loss_of_one_class_is_refused(loss: nn.Module) -> None:
    with pytest.raises(InputError, match=f"^{type(loss).__name__} is for one class per input: leave it out, or give"):
        MultiLabelClassifier(nn.Linear(4, 3), loss, num_classes=3)


def test_curves_are_counted_for_the_labels_that_are_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities, targets = (
        torch.rand(2500, 30, generator=generator),
        torch.randint(2, (2500, 30), generator=generator),
    )
    curves: Any = MultiLabelClassifier(nn.Linear(4, 30), num_classes=30).metrics.unlogged["curves"]
    curves.update(probabilities, targets)
    whole = MultilabelPrecisionRecallCurve(30, thresholds=101)
    whole.update(probabilities, targets)
    assert torch.equal(curves.confmat, whole.confmat[:, :20])


def test_rare_labels_may_weigh_more_and_the_arguments_decide() -> None:
    loss = WeightedBCE([1.0, 4.0])
    weighted = loss(torch.zeros(1, 2), torch.ones(1, 2))
    assert float(weighted) == pytest.approx(2.5 * float(nn.BCEWithLogitsLoss()(torch.zeros(1, 2), torch.ones(1, 2))))
    assert loss.state_dict() == {}
    with pytest.raises(InputError, match=r"leave it out, or give WeightedBCE$"):
        MultiLabelClassifier(nn.Linear(4, 2), nn.CrossEntropyLoss(), num_classes=2)
    for weights, message in (([1.0], "give 2 numbers, one per label"), ([0.0, 1.0], "give numbers above 0")):
        with pytest.raises(InputError, match=message):
            MultiLabelClassifier(nn.Linear(4, 2), WeightedBCE(weights), num_classes=2)
