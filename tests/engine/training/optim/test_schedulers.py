import math
import warnings
from typing import Literal

import pytest
import torch

from src.engine.system.errors import InputError
from src.engine.training.optim.schedulers import CosineAnnealingLR, OneCycleLR


def optimizer(*lrs: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs], momentum=0.9)


def test_one_cycle_peaks_at_the_learning_rate_of_each_group() -> None:
    groups = optimizer(0.1, 0.01)
    schedule = OneCycleLR(groups, total_steps=10)
    seen = []
    for _ in range(9):
        seen.append(tuple(group["lr"] for group in groups.param_groups))
        groups.step()
        schedule.step()
    assert max(first for first, _ in seen) == pytest.approx(0.1)
    assert max(second for _, second in seen) == pytest.approx(0.01)
    assert groups.param_groups[0]["lr"] == pytest.approx(0.1 / 25 / 1e4)


def test_cosine_falls_to_eta_min_after_t_max() -> None:
    groups = optimizer(0.1)
    schedule = CosineAnnealingLR(groups, T_max=5, eta_min=0.02)
    for _ in range(5):
        groups.step()
        schedule.step()
    assert groups.param_groups[0]["lr"] == pytest.approx(0.02)


def test_cosine_outside_a_run_needs_t_max() -> None:
    with pytest.raises(ValueError, match="needs T_max"):
        CosineAnnealingLR(optimizer(0.1))


@pytest.mark.parametrize("total_steps", [1, 2, 3, 49, 50, 51, 100])
def test_a_cycle_of_any_length_ends(total_steps: int) -> None:
    groups = optimizer(0.1)
    schedule = OneCycleLR(groups, total_steps=total_steps, pct_start=0.02)
    for _ in range(total_steps - 1):
        groups.step()
        schedule.step()
    assert groups.param_groups[0]["lr"] == pytest.approx(0.1 / 25 / 1e4)


def test_a_longer_run_continues_a_cycle_to_its_own_end() -> None:
    groups = optimizer(0.1)
    first = OneCycleLR(groups, total_steps=10)
    for _ in range(5):
        groups.step()
        first.step()
    longer = OneCycleLR(groups, total_steps=20)
    longer.load_state_dict(first.state_dict())
    for _ in range(14):
        groups.step()
        longer.step()
    assert groups.param_groups[0]["lr"] < 1e-5


@pytest.mark.parametrize(("stopped", "length"), [(5, 20), (10, 20), (5, 7)])
def test_a_cosine_of_another_length_falls_from_where_it_is_to_its_own_end(stopped: int, length: int) -> None:
    groups = optimizer(0.1)
    first = CosineAnnealingLR(groups, T_max=10, eta_min=0.01)
    for _ in range(stopped):
        groups.step()
        first.step()
    other = CosineAnnealingLR(groups, T_max=length, eta_min=0.01)
    other.load_state_dict(first.state_dict())
    rates = [groups.param_groups[0]["lr"]]
    for _ in range(length - stopped):
        groups.step()
        other.step()
        rates.append(groups.param_groups[0]["lr"])
    expected = [0.01 + 0.09 * (1 + math.cos(math.pi * step / length)) / 2 for step in range(stopped, length + 1)]
    assert rates == pytest.approx(expected)


def test_a_cosine_that_is_over_is_an_error() -> None:
    groups = optimizer(0.1)
    for position in (5, 8):
        saved = {**CosineAnnealingLR(groups, T_max=10).state_dict(), "last_epoch": position}
        with pytest.raises(InputError, match=f"at step {position} of a schedule with 5 steps in this run: give"):
            CosineAnnealingLR(groups, T_max=5).load_state_dict(saved)


def test_a_run_longer_than_its_cycle_is_an_error() -> None:
    with pytest.raises(InputError, match="the schedule is over after 4 steps, and the run is not: leave out --lr_"):
        moved(4, 5, "cos")


def moved(length: int, steps: int, shape: Literal["cos", "linear"]) -> tuple[torch.optim.Optimizer, OneCycleLR]:
    """An optimizer and its cycle after some steps."""
    groups = optimizer(0.1, 0.01)
    schedule = OneCycleLR(groups, total_steps=length, anneal_strategy=shape, cycle_momentum=True)
    for _ in range(steps):
        groups.step()
        schedule.step()
    return groups, schedule


def settings(groups: torch.optim.Optimizer) -> list[float]:
    return [group[name] for group in groups.param_groups for name in ("lr", "momentum")]


@pytest.mark.parametrize("shape", ["cos", "linear"])
@pytest.mark.parametrize(("stopped", "length"), [(2, 20), (5, 20), (9, 20), (5, 7)])
def test_a_cycle_of_another_length_goes_on_at_the_rate_of_its_own_position(
    stopped: int, length: int, shape: Literal["cos", "linear"]
) -> None:
    first, saved = moved(10, stopped, shape)
    groups, other = moved(length, 0, shape)
    groups.load_state_dict(first.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(saved.state_dict())
    expected, fresh = moved(length, stopped, shape)
    for _ in range(stopped, length - 1):
        assert settings(groups) == pytest.approx(settings(expected))
        assert other.get_last_lr() == pytest.approx(fresh.get_last_lr())
        for one in (groups, other, expected, fresh):
            one.step()


def test_a_cycle_of_the_same_length_goes_on_at_the_rate_of_the_checkpoint() -> None:
    first, saved = moved(10, 5, "cos")
    first.param_groups[0]["lr"] = 0.0123  # as a callback may set it
    groups, other = moved(10, 0, "cos")
    groups.load_state_dict(first.state_dict())
    other.load_state_dict(saved.state_dict())
    assert groups.param_groups[0]["lr"] == 0.0123
