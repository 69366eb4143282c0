"""Toy data that sets the size of its network."""

from typing import Any

from tests.toy import ToyData


class SizedData(ToyData):
    """Sets the number of classes of the network, like data that reads its labels from files.

    Args:
        count: number of classes; the images show three of them.
    """

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.load_state_dict({"count": count})

    def network_arguments(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.num_classes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_classes = state_dict["count"]
        self.labels = tuple(map(str, range(self.num_classes)))
