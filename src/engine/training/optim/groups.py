"""Parameter groups: weight decay, Muon, and a separate learning rate for the output layer."""

from typing import Any

from torch import nn

from src.engine.system.errors import InputError

Group = dict[str, Any]


def decay_groups(net: nn.Module, head_lr: float | None = None) -> list[Group]:
    """Split a network's trainable parameters into groups for an optimizer.

    Args:
        net: a network; its attribute `head`, if any, is the output layer.
        head_lr: learning rate of the output layer. Default: the optimizer's.

    Raises:
        InputError: `head_lr` is given, but the network has no `head`.

    Returns:
        Groups of hidden matrices (marked `hidden: True`, for Muon), of embeddings, output and other weights, and of
        biases and norms, which have no weight decay. With `head_lr`, the output layer has groups of its own.
    """
    embeddings = {id(p) for module in net.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    outer_layer = getattr(net, "head", None)
    if head_lr is not None and not isinstance(outer_layer, nn.Module):
        raise InputError(f"head_lr {head_lr}: {type(net).__name__} has no attribute head; leave head_lr out")
    head = {id(p) for p in outer_layer.parameters()} if isinstance(outer_layer, nn.Module) else set()
    groups: dict[tuple[Any, ...], Group] = {}
    for parameter in net.parameters():
        if not parameter.requires_grad:
            continue
        is_outer = id(parameter) in head
        options: Group = {"hidden": parameter.ndim == 2 and not is_outer and id(parameter) not in embeddings}
        if parameter.ndim < 2:
            options["weight_decay"] = 0.0
        if is_outer and head_lr is not None:
            options["lr"] = head_lr
        groups.setdefault(tuple(options.items()), {"params": [], **options})["params"].append(parameter)
    return list(groups.values())
