"""Transformer encoders for texts and other sequences of tokens: a single one and an ensemble."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from src.text.gpt import Block, check_transformer, rotary_angles


class TextEncoder(nn.Module):
    """A bidirectional encoder (Vaswani et al. 2017) with the blocks of `GPT` and mean pooling over the tokens.

    Args:
        vocab_size: number of tokens.
        num_classes: number of logits.
        d_model: width of the residual stream, a multiple of twice `num_heads`.
        num_heads: attention heads per block.
        num_layers: number of blocks.
        dropout: dropout probability after embedding, attention, feed-forward and mean, in [0, 1).
        token_dropout: probability of zeroing a whole token in training (Iyyer et al. 2015), in [0, 1).
        num_convolutions: number of residual convolutions over five tokens before the blocks.
        pooled: False: logits for each token.

    Shapes:
        tokens (B, T) int64, mask (B, T) bool, true for tokens -> (B, num_classes) float logits, or (B, T, num_classes)
        if not pooled. Padding within a row separates texts that do not see each other; a convolution passes over one
        token of padding, but not over two.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        vocab_size: int = 256,
        num_classes: int = 2,
        d_model: int = 128,
        num_heads: int = 4,
        num_layers: int = 2,
        dropout: float = 0.1,
        token_dropout: float = 0.0,
        num_convolutions: int = 0,
        pooled: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "num_layers": num_layers, "num_classes": num_classes}
        dropouts = {"dropout": dropout, "token_dropout": token_dropout}
        check_transformer("TextEncoder", dropouts, d_model=d_model, num_heads=num_heads, **sizes)
        if num_convolutions < 0:
            raise ValueError(f"num_convolutions {num_convolutions} is too small for TextEncoder: give at least 0")
        self.vocab_size = vocab_size
        self.num_classes = num_classes
        self.d_model = d_model
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.dropout = dropout
        self.token_dropout = token_dropout
        self.num_convolutions = num_convolutions
        self.pooled = pooled
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.embedding_dropout = nn.Dropout(dropout)
        self.convolutions = nn.ModuleList(Convolution(d_model, dropout) for _ in range(num_convolutions))
        self.blocks = nn.ModuleList(Block(d_model, num_heads, dropout, causal=False) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model, bias=False)
        self.head_dropout = nn.Dropout(dropout)
        self.head = nn.Linear(d_model, num_classes)
        nn.init.normal_(self.embedding.weight, std=0.1)  # small, so that rare words need few updates
        nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(d_model))
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(tokens)  # (B, T, C)
        if self.training and self.token_dropout:
            x = x * (torch.rand(tokens.shape, device=x.device) >= self.token_dropout).unsqueeze(2)
        x = self.embedding_dropout(x)
        for convolution in self.convolutions:
            x = convolution(x, mask)
        rotation = rotary_angles(tokens.shape[1], self.d_model // self.num_heads, tokens.device)
        text = torch.where(mask, (~mask).long().cumsum(dim=1), -1)  # (B, T): number of the text; -1 for padding
        attended = text[:, None, :, None] == text[:, None, None, :]  # (B, 1, T, T)
        for block in self.blocks:
            x = block(x, rotation, attended)  # (B, T, C)
        x = self.norm(x)
        if self.pooled:
            weight = mask.unsqueeze(2) / mask.sum(dim=1)[:, None, None]  # (B, T, 1)
            x = (x * weight).sum(dim=1)  # (B, C)
        return self.head(self.head_dropout(x))  # (B, num_classes) or (B, T, num_classes)


class Convolution(nn.Module):
    """A residual convolution over five tokens, with layer norm before and ReLU after; padding counts as zero.

    Shapes:
        x (B, T, d_model), mask (B, T) bool, true for tokens -> (B, T, d_model).
    """

    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.conv = nn.Conv1d(d_model, d_model, kernel_size=5, padding=2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = (self.norm(x) * mask.unsqueeze(2)).transpose(1, 2)  # (B, C, T)
        return x + self.dropout(self.conv(hidden).transpose(1, 2).relu())  # (B, T, C)


class TextEnsemble(nn.Module):
    """Several encoders of the same size whose probabilities are averaged (Lakshminarayanan et al. 2017).

    With one output, a number to predict, the outputs are averaged.

    In training each encoder gets its own share of every batch, so a step costs as much as with a single encoder, but
    training needs `num_members` times as many epochs.

    Args:
        num_members: number of encoders, at least 1.
        vocab_size: number of tokens.
        num_classes: number of logits.
        d_model: width of each residual stream, a multiple of twice `num_heads`.
        num_heads: attention heads per block.
        num_layers: number of blocks of each encoder.
        dropout: as in `TextEncoder`.
        token_dropout: as in `TextEncoder`.
        num_convolutions: as in `TextEncoder`.
        average: `probabilities` (softmax, one class per input) or `logits` (several labels, or numbers).

    Shapes:
        tokens (B, T) int64, mask (B, T) bool, true for tokens -> (B, num_classes) float logits.

    Raises:
        ValueError: an argument is out of range.
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
        num_convolutions: int = 0,
        average: Literal["probabilities", "logits"] = "probabilities",
    ) -> None:
        super().__init__()
        if num_members < 1:
            raise ValueError(f"num_members {num_members} is too small: give at least 1")
        self.num_members = num_members
        self.average = average
        self.vocab_size = vocab_size
        self.num_classes = num_classes
        self.d_model = d_model
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.dropout = dropout
        self.token_dropout = token_dropout
        self.num_convolutions = num_convolutions
        sizes = (vocab_size, num_classes, d_model, num_heads, num_layers, dropout, token_dropout, num_convolutions)
        self.members = nn.ModuleList(TextEncoder(*sizes) for _ in range(num_members))

    @property
    def head(self) -> nn.ModuleList:
        """The output layers of all members."""
        return nn.ModuleList(member.get_submodule("head") for member in self.members)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        count = self.num_members
        if self.training and len(tokens) >= count:
            parts: list[Tensor] = [member(tokens[i::count], mask[i::count]) for i, member in enumerate(self.members)]
            logits: Tensor = parts[0].new_empty(len(tokens), self.num_classes)  # (B, num_classes)
            for i, part in enumerate(parts):
                logits[i::count] = part
            return logits
        stacked = torch.stack([member(tokens, mask) for member in self.members])  # (members, B, num_classes)
        if self.num_classes == 1 or self.average == "logits":
            return stacked.mean(dim=0)
        return stacked.float().softmax(dim=-1).mean(dim=0).log()  # (B, num_classes)
