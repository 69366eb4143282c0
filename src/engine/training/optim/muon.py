"""One optimizer: Muon for the hidden matrices of a network, AdamW for all other parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """torch's Muon (Jordan et al. 2024) on hidden matrices, its AdamW (Loshchilov and Hutter 2019) on the rest.

    Muon is meant for the matrices between the embedding and the output layer. Parameter groups with `hidden: True` go
    to Muon. If `params` are plain parameters, all matrices go to Muon.

    Args:
        params: parameters, or parameter groups from `src.engine.training.optim.groups`.
        lr: Muon's learning rate.
        adamw_lr: AdamW's learning rate.
        weight_decay: decoupled weight decay of both.
        momentum: Muon's momentum, in [0, 1).
        betas: AdamW's decay rates of the gradient's mean and square, in [0, 1).
        ns_steps: Newton-Schulz steps that orthogonalise an update.
        adjust_lr_fn: how Muon scales its learning rate with a matrix's shape: `original` (torch's default) or
            `match_rms_adamw`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        adamw_lr: float = 3e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        params = list(params)
        is_grouped = bool(params) and isinstance(params[0], dict)
        given = [{"hidden": False, **group} for group in params] if is_grouped else [{"params": params}]
        groups = sorted((part for group in given for part in _split(group)), key=lambda part: not part["hidden"])
        rest = [parameter for group in groups if not group["hidden"] for parameter in group["params"]]
        fused = not any(parameter.is_complex() for parameter in rest)
        options: dict[str, Any] = {"momentum": momentum, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        adamw = AdamW([{"params": []}], lr=adamw_lr, weight_decay=weight_decay, betas=betas, fused=fused)
        muon = Muon([{"params": []}], lr=lr, weight_decay=weight_decay, **options)
        self._parts: tuple[Optimizer, Optimizer] = (adamw, muon)  # by `hidden`
        super().__init__(groups, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, also later, as BackboneFinetuning does; without `hidden`, all matrices go to Muon."""
        for group in _split(param_group):
            part = self._parts[group["hidden"]]
            # The part checks the group, and adds its defaults.
            part.add_param_group({name: value for name, value in group.items() if name != "hidden"})
            added = part.param_groups.pop()
            if group["hidden"] and (odd := [one for one in added["params"] if one.ndim != 2]):
                raise ValueError(f"Muon takes matrices only, not a parameter of size {tuple(odd[0].shape)}")
            super().add_param_group({**added, "hidden": group["hidden"]})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both optimizers; returns the loss of `closure`, if given, which is called once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for is_muon, part in enumerate(self._parts):
            # Loading a checkpoint replaces groups and state, so give them to the parts in every step.
            part.param_groups = [group for group in self.param_groups if group["hidden"] == is_muon]
            part.state = self.state
            part.step()
        return loss


def _split(group: dict[str, Any]) -> list[dict[str, Any]]:
    """A group without `hidden` as one of its matrices, for Muon, and one of its other parameters; no empty ones."""
    parameters = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    if "hidden" in group:
        return [{**group, "params": parameters}] if parameters else []
    parts = {True: [one for one in parameters if one.ndim == 2], False: [one for one in parameters if one.ndim != 2]}
    return [{**group, "params": part, "hidden": hidden} for hidden, part in parts.items() if part]
