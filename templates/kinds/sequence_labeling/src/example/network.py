"""A small convolutional network: replace it with your own."""

from torch import Tensor, nn


class ExampleNet(nn.Module):
    """An embedding, a convolution over three neighbours and a linear layer; padding changes nothing.

    Args:
        vocab_size: number of tokens.
        num_classes: number of logits per position.
        hidden: channels of the convolution.

    Shapes:
        tokens (B, T) int64 and mask (B, T) bool, true for tokens -> (B, T, num_classes) float.
    """

    def __init__(self, vocab_size: int = 27, num_classes: int = 3, hidden: int = 32) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.num_classes = num_classes
        self.hidden = hidden
        self.embedding = nn.Embedding(vocab_size, hidden)
        self.layers = nn.Sequential(nn.Conv1d(hidden, hidden, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(tokens) * mask.unsqueeze(2)  # (B, T, hidden), 0 for padding, as the convolution has outside
        x = self.layers(x.movedim(2, 1)).movedim(1, 2)  # (B, T, hidden)
        return self.head(x)  # (B, T, num_classes)
