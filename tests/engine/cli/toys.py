"""Toy data that a network is fitted to."""

from typing import Any

from tests.toy import ToyData


class SizedData(ToyData):
    """Says how many classes a network needs, as data does that reads its labels from files.

    Args:
        num_classes: classes, of which the images show three.
        batch_size: images of a batch.
    """

    def __init__(self, num_classes: int = 3, batch_size: int = 32) -> None:
        super().__init__(batch_size)
        self.num_classes = num_classes

    def network_arguments(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    def state_dict(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_classes = state_dict["num_classes"]
