"""Windows of a long row of tokens."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.loading import IGNORED

Batch = tuple[Tensor, Tensor]


class Windows(Dataset[Batch]):
    """Windows of a long row of tokens; a whole batch is one indexing.

    Args:
        tokens: (N,) integers, such as a memory map.
        block_size: T, tokens of a window.
        stride: tokens from one window's start to the next: 1 gives every full window, T each token once,
            with a last window that is filled up.
    """

    def __init__(self, tokens: npt.NDArray[Any], block_size: int, stride: int) -> None:
        self.tokens = tokens
        self.block_size = block_size
        self.stride = stride

    def __len__(self) -> int:
        if self.stride < self.block_size:
            return (len(self.tokens) - 1 - self.block_size) // self.stride + 1
        return -(-(len(self.tokens) - 1) // self.stride)

    def __getitem__(self, index: int) -> Batch:
        inputs, targets = self.__getitems__([index])
        return inputs[0], targets[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        """Inputs (B, T) int64, and targets (B, T) int64, the token behind each, `IGNORED` behind the end."""
        window = np.asarray(indices)[:, None] * self.stride + np.arange(self.block_size + 1)  # (B, T + 1)
        last = len(self.tokens) - 1
        tokens = torch.from_numpy(self.tokens[np.minimum(window, last)].astype(np.int64))
        targets = tokens[:, 1:].masked_fill(torch.from_numpy(window[:, 1:] > last), IGNORED)
        return tokens[:, :-1], targets
