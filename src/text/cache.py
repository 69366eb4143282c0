"""Key-value caches of a GPT."""

import torch
from torch import Tensor, nn

KEYS_AND_VALUES = ("keys", "values")


class KeyValueCache:
    """Caches what a GPT computed for earlier tokens, so that only new tokens are processed."""

    mask: Tensor | None = None
    """Which keys each new token attends to, (B, 1, 1, S) bool; None: itself and all earlier tokens."""

    angles: tuple[Tensor, Tensor] | None = None
    """Cosine and sine of all positions."""

    def __init__(self) -> None:
        self.kept: dict[tuple[nn.Module, str], Tensor] = {}  # by layer and name, (B, ..., tokens, features)
        self.length = 0

    def __len__(self) -> int:
        """Number of tokens processed."""
        return self.length

    def begin(self, count: int, device: torch.device) -> Tensor:
        """Prepare for `count` more tokens, all processed in one call; returns their positions (T,)."""
        self.length += count
        return torch.arange(self.length - count, self.length, device=device)

    def extend(self, layer: nn.Module, name: str, new: Tensor, last: int | None = None) -> Tensor:
        """Append (B, ..., T, features) along the tokens; returns all so far; only the `last` are kept, default: all."""
        past = self.kept.get((layer, name))
        if past is None:
            past = new.new_zeros((*new.shape[:-2], last or 0, new.shape[-1]))
        found = torch.cat([past, new], dim=-2)
        self.kept[layer, name] = found if last is None else found[..., -last:, :]
        return found


class SharedCache(KeyValueCache):
    """A cache for several texts of different lengths; each step adds one token to each text.

    Its shapes do not depend on which texts it holds, except that keys are padded to a multiple of `PADDING` tokens.
    So the results for a text are bit-identical whatever the other texts are.

    Args:
        count: number of texts.
        block_size: largest number of tokens of a text.
    """

    PADDING = 64

    def __init__(self, count: int, block_size: int) -> None:
        super().__init__()
        self.lengths = [0] * count
        """Tokens processed of each text; set it to 0 for a text that is not needed any more."""
        self.capacity = block_size + self.PADDING  # never used whole: products with all of it could differ in bits

    def __len__(self) -> int:
        return max(self.lengths)

    def put(self, row: int, cache: KeyValueCache) -> None:
        """Replace a text by one that has been processed on its own."""
        self.lengths[row] = len(cache)
        for (layer, name), value in cache.kept.items():
            if (layer, name) not in self.kept:
                size = self.capacity if name in KEYS_AND_VALUES else value.shape[-2]
                shape = (len(self.lengths), *value.shape[1:-2], size, value.shape[-1])
                self.kept[layer, name] = value.new_zeros(shape)
            self.kept[layer, name][row, ..., : value.shape[-2], :] = value[0]

    def begin(self, count: int, device: torch.device) -> Tensor:
        """Prepare for one more token of each text; returns their positions (B, 1, 1)."""
        self.positions = torch.tensor(self.lengths, device=device)  # (B,)
        self.rows = torch.arange(len(self.lengths), device=device)
        self.lengths = [length + count for length in self.lengths]
        self.size = -(-len(self) // self.PADDING) * self.PADDING  # S
        keys = torch.arange(self.size, device=device)
        self.mask = (keys <= self.positions[:, None])[:, None, None]  # (B, 1, 1, S)
        return self.positions[:, None, None]

    def extend(self, layer: nn.Module, name: str, new: Tensor, last: int | None = None) -> Tensor:
        if last is not None:
            return super().extend(layer, name, new, last)
        kept = self.kept[layer, name]  # (B, heads, capacity, head_dim)
        kept[self.rows, :, self.positions] = new[:, :, 0].to(kept.dtype)
        return kept[:, :, : self.size]
