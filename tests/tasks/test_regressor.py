"""Regression: scores, units, unknown targets."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from src.engine.system.errors import InputError
from src.tasks.regression_metrics import MAE, RMSE, mean_and_std, regression_figures
from src.tasks.regressor import Regressor
from tests.conftest import trainer

UNIT = torch.tensor([1e6, 3e-4])  # two targets in units of very different size
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(50, 3, generator=GENERATOR)
Y = (torch.stack([X.sum(1), X[:, 0]], dim=1) + torch.randn(50, 2, generator=GENERATOR) / 4 + 1000) * UNIT


class Line(nn.Linear):
    """A linear layer that a checkpoint can rebuild."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)


class Numbers(LightningDataModule):
    """One data set for all stages, in batches of 8 samples and a last one of 2."""

    def __init__(self, x: Tensor = X, y: Tensor = Y) -> None:
        super().__init__()
        self.rows = TensorDataset(x, y)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, 8, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, 8)

    test_dataloader = val_dataloader


def fitted(folder: Path, data: Numbers, loss: nn.Module | None = None, **options: Any) -> tuple[Regressor, Any]:
    """A task after training, and what its test measures."""
    torch.manual_seed(0)
    targets = data.rows.tensors[1][0].numel()
    task = Regressor(Line(3, targets), loss, targets)
    task.configure_optimizers = lambda: torch.optim.Adam(task.parameters(), 0.2)  # type: ignore[method-assign]
    run = trainer(folder, max_epochs=5, **options)
    run.fit(task, data)
    return task, run.test(task, data, verbose=False)[0]


def predicted(task: Regressor, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return task.eval().predictions(x)["values"]


@pytest.mark.slow
def test_scores_are_those_of_scikit_learn_in_the_units_of_the_targets(tmp_path: Path) -> None:
    task, found = fitted(tmp_path, Numbers())
    preds = predicted(task)
    assert found["test/r2"] == pytest.approx(r2_score(Y, preds), rel=1e-3)
    assert 0.5 < found["test/r2"] < 1
    assert found["test/mae"] == pytest.approx(mean_absolute_error(Y, preds), rel=1e-3)
    assert found["test/rmse"] == pytest.approx(root_mean_squared_error(Y, preds), rel=1e-3)


def test_targets_are_standardised_by_the_training_part_and_given_back_in_their_unit(tmp_path: Path) -> None:
    task, found = fitted(tmp_path, Numbers())
    assert torch.allclose(task.target_mean, Y.double().mean(0).float())
    assert torch.allclose(task.target_std, Y.double().std(0, correction=0).float(), rtol=1e-4)
    scaled = (predicted(task).double() - Y.double().mean(0)) / Y.double().std(0, correction=0)
    truth = (Y.double() - Y.double().mean(0)) / Y.double().std(0, correction=0)
    assert found["test/loss"] == pytest.approx(nn.functional.mse_loss(scaled, truth).item(), rel=1e-3)
    assert torch.equal(task(X), predicted(task))


def test_a_small_deviation_of_large_numbers_keeps_its_digits() -> None:
    targets = 1e9 + torch.randn(1000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, std = mean_and_std(targets)
    assert mean.item() == pytest.approx(targets.mean().item(), abs=1e-6)
    assert std.item() == pytest.approx(targets.std(correction=0).item(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")
def test_reading_the_targets_changes_no_random_number(tmp_path: Path) -> None:
    after = []
    for is_read in (True, False):
        task, run = Regressor(Line(3, 2), num_targets=2), trainer(tmp_path, max_epochs=0)
        torch.manual_seed(7)
        run.fit(task, Numbers() if is_read else Numbers().train_dataloader())
        assert bool(task.target_mean.any()) == is_read
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_an_unknown_target_leaves_the_others_of_its_sample_in(tmp_path: Path) -> None:
    y = Y.clone()
    y[::5, 0] = torch.nan
    y[:8, 1] = torch.inf  # the whole first batch
    known = y.isfinite()
    task, found = fitted(tmp_path, Numbers(y=y))
    preds = predicted(task)
    parts = [(y[known[:, at], at], preds[known[:, at], at]) for at in (0, 1)]
    for name, score in (("r2", r2_score), ("mae", mean_absolute_error), ("rmse", root_mean_squared_error)):
        assert found[f"test/{name}"] == pytest.approx(sum(score(*part) for part in parts) / 2, rel=1e-3)
    scaled = torch.cat([(a - b).double() / task.target_std[at] for at, (a, b) in enumerate(parts)])
    assert found["test/loss"] == pytest.approx(scaled.square().mean().item(), rel=1e-3)
    loss, seen = task.step((X, torch.full_like(Y, torch.nan)))
    assert (loss.item(), seen["weight"].item()) == (0, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert not any(one.grad.any() for one in task.net.parameters())


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.HuberLoss(delta=0.5)])
def test_other_losses_are_computed_on_standardised_numbers(tmp_path: Path, loss: nn.Module) -> None:
    task, found = fitted(tmp_path, Numbers(), loss)
    scaled = [(one.double() - task.target_mean) / task.target_std for one in (predicted(task), Y)]
    assert found["test/loss"] == pytest.approx(loss(*scaled).item(), rel=1e-3)


def test_one_target_may_have_one_or_two_dimensions(tmp_path: Path) -> None:
    found = [fitted(tmp_path / str(y.ndim), Numbers(y=y))[1] for y in (Y[:, :1], Y[:, 0])]
    assert found[0] == pytest.approx(found[1])


def test_targets_that_do_not_vary_have_no_r2_and_no_division_by_zero(tmp_path: Path) -> None:
    y = Y.clone()
    y[:, 1] = 5.0
    task, found = fitted(tmp_path, Numbers(y=y))
    assert task.target_std[1] == 1
    assert found["test/r2"] == pytest.approx(r2_score(Y[:, 0], predicted(task)[:, 0]), rel=1e-3)


def test_a_run_of_few_batches_reads_no_more_of_them(tmp_path: Path) -> None:
    y = Y.clone()
    y[16:] = torch.nan
    data = Numbers(y=y)
    data.train_dataloader = data.val_dataloader  # type: ignore[method-assign]
    task, _ = fitted(tmp_path, data, limit_train_batches=2)
    assert torch.allclose(task.target_mean, Y[:16].mean(0), rtol=1e-4)


def test_a_target_that_is_always_the_same_is_said(tmp_path: Path, messages: list[str]) -> None:
    y = Y.clone()
    fitted(tmp_path, Numbers(y=y))
    assert not any("nothing to learn" in line for line in messages)
    y[:, 1] = 3
    fitted(tmp_path, Numbers(y=y))
    assert any("a target is the same in the whole training part: there is nothing to learn" in one for one in messages)


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    task = Regressor(Line(3, 3), num_targets=2)
    with pytest.raises(InputError, match=r"predictions of Regressor have the shape \(50, 3\): give \(B, 2\)"):
        task.step((X, Y))
    with pytest.raises(InputError, match=r"targets of Regressor have the shape \(50, 2\): give \(B, 1\), or another"):
        Regressor(Line(3, 1)).step((X, Y))
    unknown = Numbers(y=torch.full_like(Y, torch.nan))
    with pytest.raises(InputError, match=r"target 0 is unknown \(NaN\) in the whole training part"):
        trainer(tmp_path, max_epochs=1).fit(Regressor(Line(3, 2), num_targets=2), unknown)
    named = Numbers()
    named.labels = ("a", "b", "c")  # type: ignore[attr-defined]
    with pytest.raises(
        InputError, match=r"has 3 labels and Regressor 2 outputs: .* or a network with .* num_targets 3"
    ):
        trainer(tmp_path, max_epochs=1).fit(Regressor(Line(3, 2), num_targets=2), named)


def test_a_row_has_one_number_per_target() -> None:
    values = {"values": torch.tensor([[1.5, 2.0]])}
    task = Regressor(Line(3, 2), num_targets=2)
    assert task.prediction_rows(values, ["kg", "m"]) == [{"kg": 1.5, "m": 2.0}]
    assert task.prediction_rows(values, []) == [{"value_0": 1.5, "value_1": 2.0}]
    assert Regressor(Line(3, 1)).prediction_rows({"values": torch.ones(1, 1)}, []) == [{"value": 1.0}]


def test_the_figures_show_each_target_and_leave_unknown_ones_out() -> None:
    target = torch.tensor([[1.0, 5.0], [2.0, torch.nan], [3.0, 7.0]])
    samples = [{"target": one, "preds": one + 0.5} for one in target]
    figures = regression_figures(samples, ["kg", "m"])
    axes = figures["predicted and true"].axes
    assert [one.get_xlabel() for one in axes] == ["true kg", "true m"]
    assert axes[1].collections[0].get_offsets().tolist() == [[5.0, 5.5], [7.0, 7.5]]
    assert figures["residuals"].axes[0].collections[0].get_offsets()[:, 1].tolist() == [0.5, 0.5, 0.5]


def test_targets_that_are_whole_numbers_are_refused_as_padding_would_be_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^targets are torch.int64, Regressor takes float, NaN where unknown"):
        fitted(tmp_path, Numbers(y=torch.arange(50)))


def test_a_target_that_is_unknown_in_what_a_short_run_reads_is_no_error(tmp_path: Path) -> None:
    y = Y.clone()
    y[:, 1] = torch.nan
    task, _ = fitted(tmp_path, Numbers(y=y), limit_train_batches=1, limit_val_batches=0)
    assert (task.target_mean[1], task.target_std[1]) == (0, 1)


def test_an_endless_loader_is_read_for_as_long_as_the_run(tmp_path: Path) -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(zip(cycle(X), cycle(Y), strict=False))

    data = Numbers()
    data.train_dataloader = lambda: DataLoader(Endless(), 8)  # type: ignore[method-assign]
    task, _ = fitted(tmp_path, data, max_steps=6)
    assert torch.allclose(task.target_mean, Y[:48].mean(0))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_in_half_precision_are_refused_as_they_round_the_targets(precision: str) -> None:
    task = Regressor(Line(3, 1))
    task.trainer = SimpleNamespace(precision=precision)  # type: ignore[assignment]
    for stage in ("fit", "validate", "test"):
        with pytest.raises(
            InputError, match=f"^--precision {precision} rounds the targets: give bf16-mixed or 32-true"
        ):
            task.setup(stage)
    task.setup("predict")
    task.trainer = SimpleNamespace(precision="bf16-mixed")  # type: ignore[assignment]
    task.setup("fit")


def test_a_network_that_averages_probabilities_has_one_target() -> None:
    nets = [Line(3, count) for count in (1, 2)]
    for net in nets:
        net.average = "probabilities"  # type: ignore[assignment]
    assert Regressor(nets[0]).num_targets == 1
    with pytest.raises(
        InputError, match=r"^Line averages softmax probabilities, .*: give --model\.net\.average logits$"
    ):
        Regressor(nets[1], num_targets=2)
    nets[1].average = "logits"  # type: ignore[assignment]
    assert Regressor(nets[1], num_targets=2).num_targets == 2


def test_errors_of_large_numbers_are_finite() -> None:
    off = torch.tensor([[1e20], [2e20]])
    for metric in (MAE(1), RMSE(1)):
        metric.update(off + 1e20, off)
        assert float(metric.compute()) == pytest.approx(1e20, rel=1e-5)
