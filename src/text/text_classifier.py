"""Text classification."""

from typing import Any

import torch
from torch import Tensor, nn

from src.engine.system.errors import InputError
from src.engine.training.optim.groups import Group, decay_groups
from src.tasks.classifier import Batch, Classifier


class TextClassifier(Classifier):
    """Trains and tests a network that maps padded token sequences to class logits.

    Args:
        net: the network, tokens (B, T) int64 and mask (B, T) bool, true for tokens -> (B, num_classes) float logits.
        loss: loss on logits and class numbers. Default: cross entropy.
        num_classes: number of classes. Default: the network's `num_classes`.
        head_lr: learning rate of the network's `head`. Default: the optimizer's.
        adversarial: adversarial training (Miyato et al. 2017): Euclidean length, at least 0, by which the embedding of
            each text is moved in the direction that increases its loss most. The loss is the mean of the losses with
            and without the move; training takes longer. For comparison: the embedding of a token in MiniLM has length
            1.1. 0: off.

    Biases, norms and other vectors have no weight decay. For what is logged, predicted and raised see `Classifier`.

    Raises:
        InputError: `adversarial` is negative, or it is given and the network has no `embedding` or is compiled.
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
            raise InputError(f"adversarial {adversarial} is out of range: give at least 0; 0 turns it off")
        if adversarial and not isinstance(getattr(net, "embedding", None), nn.Module):
            raise InputError(f"{type(net).__name__} has no attribute embedding; leave adversarial out")
        self.save_hyperparameters({"head_lr": head_lr, "adversarial": adversarial})
        self.head_lr = head_lr
        self.adversarial = adversarial

    def parameter_groups(self) -> list[Group]:
        return decay_groups(self.net, self.head_lr)

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """As in `Classifier`; in adversarial training the mean of the losses with and without the move."""
        if not (self.adversarial and self.training):
            return super().step(batch)
        if getattr(self.net, "is_compiled", False):
            raise InputError("adversarial does not work with a compiled network: give 0, or do not compile it")
        embedding: nn.Module = self.net.embedding  # type: ignore[assignment]
        embedded: list[Tensor] = []

        def keep_output(*args: Any) -> Tensor:
            output: Tensor = args[-1]
            embedded.append(output if output.requires_grad else output.requires_grad_())
            return embedded[0]

        with embedding.register_forward_hook(keep_output):
            loss, metrics = super().step(batch)
        scaler = getattr(getattr(self._trainer, "precision_plugin", None), "scaler", None)
        scaled = loss if scaler is None else scaler.scale(loss)  # else small gradients are 0 in float16
        (gradient,) = torch.autograd.grad(scaled, embedded[0], retain_graph=True)  # (B, T, C)
        # Normalized per text, so that a text does not depend on the others in its batch or process.
        slopes = gradient.float().nan_to_num(0, 0, 0).flatten(1)  # not finite in a step that the scaler will skip
        direction = nn.functional.normalize(slopes, eps=1e-30).view_as(gradient)
        move = (self.adversarial * direction).to(gradient.dtype)
        with embedding.register_forward_hook(lambda *args: args[-1] + move):
            moved, _ = super().step(batch)
        return (loss + moved) / 2, metrics
