"""Parameter groups: what decays, what Muon takes, what has a learning rate of its own."""

from typing import Any

from torch import Tensor, nn

from src.engine.system.errors import InputError

Group = dict[str, Any]


def decay_groups(net: nn.Module, head_lr: float | None = None) -> list[Group]:
    """The trained parameters of a network in up to four groups.

    Args:
        net: a network whose attribute `head` is its output layer, where it has one.
        head_lr: learning rate of the output layer; the optimizer's where nothing is given.

    Raises:
        InputError: there is a `head_lr` and no `head`.

    Returns:
        Groups for an optimizer: hidden matrices (marked `hidden: True`, for Muon), embeddings and output
        matrices, and biases and norms, which do not decay (Loshchilov and Hutter 2019).
    """
    embeddings = {id(p) for module in net.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    outer_layer = getattr(net, "head", None)
    if head_lr is not None and not isinstance(outer_layer, nn.Module):
        raise InputError(f"head_lr {head_lr}: {type(net).__name__} has no attribute head; leave head_lr out")
    head = {id(p) for p in outer_layer.parameters()} if isinstance(outer_layer, nn.Module) else set()
    groups: dict[tuple[bool, bool, bool], list[Tensor]] = {}
    for parameter in net.parameters():
        if parameter.requires_grad:
            outer = id(parameter) in head
            matrix = parameter.ndim >= 2
            hidden = parameter.ndim == 2 and not outer and id(parameter) not in embeddings
            groups.setdefault((hidden, matrix, outer and head_lr is not None), []).append(parameter)
    made = []
    for (hidden, matrix, own_lr), parameters in groups.items():
        group: Group = {"params": parameters, "hidden": hidden}
        if not matrix:
            group["weight_decay"] = 0.0
        if own_lr:
            group["lr"] = head_lr
        made.append(group)
    return made
