"""A small recurrent network: replace it with your own."""

from torch import Tensor, nn


class ExampleNet(nn.Module):
    """An embedding, a GRU in both directions (Cho et al. 2014) and a linear layer.

    Args:
        vocab_size: number of tokens.
        num_classes: number of logits per position.
        hidden: width of the GRU in each direction.

    Shapes:
        tokens (B, T) int64 and mask (B, T) bool, true for tokens -> (B, T, num_classes) float.
    """

    def __init__(self, vocab_size: int = 27, num_classes: int = 3, hidden: int = 32) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.num_classes = num_classes
        self.hidden = hidden
        self.embedding = nn.Embedding(vocab_size, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, num_classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(tokens) * mask.unsqueeze(2)  # (B, T, hidden)
        x, _ = self.gru(x)  # (B, T, 2 * hidden)
        return self.head(x)  # (B, T, num_classes)
