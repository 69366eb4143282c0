"""Several small encoders that tell the class of a text together."""

import torch
from torch import Tensor, nn

from src.errors import InputError
from src.models.text_encoder import TextEncoder


class TextEnsemble(nn.Module):
    """Encoders of the same shape whose probabilities are averaged (Lakshminarayanan et al. 2017).

    In training each member sees a share of the batch, another in every epoch, so a step costs what one encoder's does,
    and it takes as many times the epochs.

    Args:
        num_members: encoders, at least 1.
        vocab_size: number of tokens.
        num_classes: number of logits.
        d_model: width of each residual stream, a multiple of twice `num_heads`.
        num_heads: attention heads a block.
        num_layers: blocks of each encoder.
        dropout: as of `TextEncoder`.
        token_dropout: as of `TextEncoder`.

    Shapes:
        tokens (B, T) int64, mask (B, T) bool, true where there is a token -> (B, num_classes) float.

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(
        self,
        num_members: int = 4,
        vocab_size: int = 256,
        num_classes: int = 2,
        d_model: int = 128,
        num_heads: int = 4,
        num_layers: int = 2,
        dropout: float = 0.1,
        token_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_members < 1:
            raise InputError(f"num_members {num_members} is too small: give at least 1")
        self.num_members = num_members
        self.vocab_size = vocab_size
        self.num_classes = num_classes
        self.d_model = d_model
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.dropout = dropout
        self.token_dropout = token_dropout
        sizes = (vocab_size, num_classes, d_model, num_heads, num_layers)
        self.members = nn.ModuleList(TextEncoder(*sizes, dropout, token_dropout) for _ in range(num_members))

    @property
    def head(self) -> nn.ModuleList:
        """The layers that turn features into logits."""
        return nn.ModuleList(member.get_submodule("head") for member in self.members)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        count = self.num_members
        if self.training and len(tokens) >= count:
            parts: list[Tensor] = [member(tokens[i::count], mask[i::count]) for i, member in enumerate(self.members)]
            logits: Tensor = parts[0].new_empty(len(tokens), self.num_classes)  # (B, num_classes)
            for i, part in enumerate(parts):
                logits[i::count] = part
            return logits
        found = torch.stack([member(tokens, mask) for member in self.members])  # (members, B, num_classes)
        mean: Tensor = found.float().softmax(dim=-1).mean(dim=0).log()  # (B, num_classes)
        return mean
