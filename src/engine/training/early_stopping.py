"""EarlyStopping that watches the metric which selects the best checkpoint."""

from typing import Any

from lightning.pytorch import Callback, callbacks

from src.engine.training.checks import DEFAULT_MONITOR, FOLLOWED


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's EarlyStopping, whose metric has a default.

    Args:
        monitor: the metric; default: the one that selects the best checkpoint, with its mode.
        options: Lightning's other arguments.
    """

    def __init__(self, monitor: str = FOLLOWED, **options: Any) -> None:
        super().__init__(monitor, **options)


def watched(best: Any) -> tuple[str, str]:
    """Metric and mode for those that follow the settings of the best checkpoint, `best`."""
    return (best.monitor, best.mode) if best.monitor else (DEFAULT_MONITOR, "min")


def followers(everyone: list[Callback]) -> list[callbacks.EarlyStopping]:
    """Every EarlyStopping among callbacks that watches what selects the best checkpoint."""
    return [one for one in everyone if isinstance(one, callbacks.EarlyStopping) and one.monitor == FOLLOWED]


def follow(stoppers: list[callbacks.EarlyStopping], monitor: str, mode: str) -> None:
    """Let every EarlyStopping in a list watch a metric."""
    for one in stoppers:
        one.monitor = monitor
        if one.mode != mode:
            one.mode, one.min_delta, one.best_score = mode, -one.min_delta, -one.best_score
