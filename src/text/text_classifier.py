"""The task of telling which class a text belongs to."""

from typing import Any

import torch
from torch import Tensor, nn

from src.engine.system.errors import InputError
from src.engine.training.compilation import is_compiled
from src.engine.training.optim.groups import Group, decay_groups
from src.tasks.classifier import Batch, Classifier


class TextClassifier(Classifier):
    """Trains and tests any network that maps padded token sequences to class logits.

    Args:
        net: the network, tokens (B, T) int64 and mask (B, T) bool, true where there is a token ->
            (B, num_classes) float logits.
        loss: of logits and class numbers; cross entropy where nothing is given.
        num_classes: number of classes; where nothing is given, the network's own `num_classes`.
        head_lr: learning rate of the network's `head`; the optimizer's where nothing is given.
        adversarial: how far, as a Euclidean length, the output of the network's `embedding` is moved for each text to
            where its loss grows most; training then takes the mean of both losses (Miyato et al. 2017), for more than
            twice the arithmetic of a step. For scale: MiniLM's vector of a token is 1.1 long. 0 for none.

    Biases, norms and other vectors do not decay. What it logs, predicts and raises is `Classifier`'s.

    Raises:
        InputError: `adversarial` is negative, the network has no `embedding`, or it is compiled.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module | None = None,
        num_classes: int | None = None,
        head_lr: float | None = None,
        adversarial: float = 0.0,
    ) -> None:
        super().__init__(net, loss, num_classes)
        if adversarial < 0:
            raise InputError(f"adversarial {adversarial} is out of range: give a length, or 0 for none")
        if adversarial and not isinstance(getattr(net, "embedding", None), nn.Module):
            raise InputError(
                f"adversarial {adversarial}: {type(net).__name__} has no attribute embedding; leave adversarial out"
            )
        self.save_hyperparameters({"head_lr": head_lr, "adversarial": adversarial})
        self.head_lr = head_lr
        self.adversarial = adversarial

    def parameter_groups(self) -> list[Group]:
        """The groups an optimizer is built with."""
        return decay_groups(self.net, self.head_lr)

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """As of `Classifier`; where training is adversarial, the mean of the loss and that of the moved texts."""
        if not (self.adversarial and self.training):
            return super().step(batch)
        if is_compiled(self.net):
            raise InputError(f"adversarial {self.adversarial} looks into the network: leave --compile out, or give 0")
        embedding: nn.Module = self.net.embedding  # type: ignore[assignment]
        embedded: list[Tensor] = []

        def keep(*given: Any) -> Tensor:
            output: Tensor = given[-1]
            embedded.append(output if output.requires_grad else output.requires_grad_())
            return embedded[0]

        with embedding.register_forward_hook(keep):
            loss, seen = super().step(batch)
        (slope,) = torch.autograd.grad(loss, embedded[0], retain_graph=True)  # (B, T, C)
        # Of each text alone, so that it does not depend on which others are in its batch, or its process.
        steepest = nn.functional.normalize(slope.float().flatten(1), eps=1e-30).view_as(slope)
        move = (self.adversarial * steepest).to(slope.dtype)
        with embedding.register_forward_hook(lambda *given: given[-1] + move):
            moved, _ = super().step(batch)
        return (loss + moved) / 2, seen
