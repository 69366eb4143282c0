"""Data that is not there, data at a path, and a callback whose arguments YAML does not know."""

from typing import Any

from lightning.pytorch import Callback

from src.engine.system.errors import InputError
from tests.toy import ToyData


class UnreachableData(ToyData):
    """Data whose files are not there."""

    def prepare_data(self) -> None:
        raise InputError("the data folder is not there")


class Reading:
    """A callable instance."""

    def __call__(self, value: float) -> float:
        return value


class WithObjects(Callback):
    """Has arguments that YAML does not know.

    Args:
        read: an instance as default.
        given: anything.
        tag: a text, which jsonargparse reads as a number where it can.
    """

    def __init__(self, read: Any = Reading(), given: Any = None, tag: str | None = None) -> None:  # noqa: B008
        self.read = read
        self.given = given
        self.tag = tag


class PlacedData(ToyData):
    """Data of a path, which is not read."""

    def __init__(self, path: str, batch_size: int = 32) -> None:
        super().__init__(batch_size)
        self.path = path
