"""Many texts in little memory."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

CHUNK = 10_000  # texts whose offsets are Python numbers at the same time


class Texts(Sequence[str]):
    """Texts in one buffer: as separate strings they take twice the memory, and most of the time of reading a table.

    Args:
        data: the UTF-8 bytes of all texts.
        lengths: number of bytes of each text.
        starts: first byte of each text. Default: one text follows the other.
    """

    def __init__(self, data: Any, lengths: npt.ArrayLike, starts: npt.NDArray[np.int64] | None = None) -> None:
        self.data: Any = np.frombuffer(data, np.uint8)
        self.lengths = np.asarray(lengths, np.int64)
        self.starts = self.lengths.cumsum() - self.lengths if starts is None else starts

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """The texts of a list."""
        encoded = [text.encode() for text in texts]
        return cls(b"".join(encoded), [len(one) for one in encoded])

    def take(self, indices: npt.ArrayLike) -> "Texts":
        """Some of the texts, in the same buffer."""
        own = np.asarray(indices, np.int64)
        return Texts(self.data, self.lengths[own], self.starts[own])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        start = self.starts[index]
        return str(memoryview(self.data[start : start + self.lengths[index]]), "utf-8")

    def __iter__(self) -> Iterator[str]:
        view = memoryview(self.data)
        for first in range(0, len(self), CHUNK):
            starts = self.starts[first : first + CHUNK]
            ends = starts + self.lengths[first : first + CHUNK]
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                yield str(view[start:end], "utf-8")
