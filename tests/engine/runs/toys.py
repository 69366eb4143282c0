"""Data that is not there."""

from src.engine.system.errors import InputError
from tests.toy import ToyData


class UnreachableData(ToyData):
    """Data whose files are not there."""

    def prepare_data(self) -> None:
        raise InputError("the data folder is not there")
