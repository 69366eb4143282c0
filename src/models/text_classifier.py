"""The task of telling which class a text belongs to."""

from torch import nn

from src.models.classifier import Classifier
from src.optim.groups import Group, decay_groups


class TextClassifier(Classifier):
    """Trains and tests any network that maps padded token sequences to class logits.

    Args:
        net: the network, tokens (B, T) int64 and mask (B, T) bool, true where there is a token ->
            (B, num_classes) float logits.
        loss: of logits and class numbers; cross entropy where nothing is given.
        num_classes: number of classes; where nothing is given, the network's own `num_classes`.
        head_lr: learning rate of the network's `head`; the optimizer's where nothing is given.

    Biases, norms and other vectors do not decay. What it logs, predicts and raises is `Classifier`'s.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module | None = None,
        num_classes: int | None = None,
        head_lr: float | None = None,
    ) -> None:
        super().__init__(net, loss, num_classes)
        self.save_hyperparameters({"head_lr": head_lr})
        self.head_lr = head_lr

    def parameter_groups(self) -> list[Group]:
        """The groups an optimizer is built with."""
        return decay_groups(self.net, self.head_lr)
