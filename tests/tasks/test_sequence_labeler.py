"""A class for each position of a sequence: padding, scores, rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection, SumMetric

from src.tasks.sequence_labeler import SequenceLabeler, sequence_figure
from tests.conftest import trainer


class Positions(nn.Module):
    """Logits of a position from its token and how far it is from the start: padding has some too."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.table(tokens) + torch.arange(tokens.shape[1])[:, None] / 10
        return logits


def batch(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens = torch.randint(10, mask.shape, generator=generator)
    return tokens, mask, torch.where(mask, tokens % 3, -100)


BATCHES = [batch([2, 5, 3]), batch([1]), batch([7, 1])]


def test_scores_are_those_of_scikit_learn_without_padding(tmp_path: Path) -> None:
    task = SequenceLabeler(Positions())
    loader: Any = DataLoader(BATCHES, batch_size=None)  # type: ignore[arg-type]
    (found,) = trainer(tmp_path).test(task, loader, verbose=False)
    parts = [(task(tokens, mask).movedim(1, 2)[mask], targets[mask]) for tokens, mask, targets in BATCHES]
    logits, targets = (torch.cat(part) for part in zip(*parts, strict=True))
    assert len(targets) == 19
    assert found["test/acc"] == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    assert found["test/f1"] == pytest.approx(f1_score(targets, logits.argmax(1), average="macro"), rel=1e-5)
    assert found["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)
    assert task.confusion.compute().sum() == 19


def test_padding_gives_no_gradient() -> None:
    task = SequenceLabeler(Positions())
    tokens, mask, targets = batch([2, 5])
    tokens[~mask] = 9
    targets[tokens == 9] = -100
    task.step((tokens, mask, targets))[0].backward()  # type: ignore[no-untyped-call]
    gradient = task.net.table.weight.grad  # type: ignore[union-attr]
    assert gradient.any()  # type: ignore[operator, union-attr]
    assert not gradient[9].any()  # type: ignore[index, union-attr]


def test_a_metric_gets_the_logits_of_each_position() -> None:
    seen: set[tuple[torch.Size, torch.Size]] = set()

    class OfLogits(SumMetric):
        def update(self, logits: Tensor, target: Tensor) -> None:
            seen.add((logits.shape, target.shape))

    class Labeler(SequenceLabeler):
        def configure_metrics(self, num_classes: int) -> MetricCollection:
            metrics = super().configure_metrics(num_classes)
            metrics.add_metrics({"own": OfLogits()})
            return metrics

    task = Labeler(Positions())
    task.metrics.add("val", task.check(task.step(batch([2, 5, 3])))[1])
    task.metrics.has_seen("val")
    assert seen == {((15, 3), (15,))}
    assert "logits" not in SequenceLabeler(Positions()).step(batch([2]))[1]


def test_one_label_for_texts_of_one_token_is_a_sequence_too() -> None:
    task = SequenceLabeler(Positions())
    tokens, mask, targets = batch([1, 1])
    assert task.step((tokens, mask, targets[:, 0]))[0] == task.step((tokens, mask, targets))[0]


def test_a_row_has_one_label_per_token() -> None:
    task = SequenceLabeler(Positions())
    tokens, mask, _ = batch([2, 4])
    predicted = task.predictions(tokens, mask)
    rows = task.prediction_rows(predicted, ["a", "b", "c"])
    assert [len(row["labels"]) for row in rows] == [2, 4]
    assert rows[1]["labels"] == ["abc"[one] for one in predicted["labels"][1].tolist()]


def test_the_figure_has_the_truth_above_the_prediction_and_white_padding() -> None:
    _, _, targets = batch([2, 4])
    figure = sequence_figure([{"target": one, "preds": one.clamp(min=0)} for one in targets], ["a", "b", "c"])
    (axes,) = figure.axes
    cells = torch.tensor(axes.images[0].get_array().filled(-100.0)).long()
    assert torch.equal(cells[0], targets[0])
    assert torch.equal(cells[1], targets[0])  # padding is white in the prediction too
    assert torch.equal(cells[3], targets[1])
    assert (cells[2] == -100).all()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
