"""Which fold of cross-validation a run validates on."""

from src.engine.system.errors import InputError, check_least


def check_fold(fold: int | None, folds: int) -> None:
    """Raise InputError if there is no such fold."""
    check_least(2, folds=folds)
    if fold is not None and not 1 <= fold <= folds:
        raise InputError(f"fold {fold} is out of range: give 1 to {folds}, or more --data.folds")
