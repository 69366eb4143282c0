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
        groups = params if params and isinstance(params[0], dict) else _split_by_shape(params)
        self._parts: tuple[Optimizer, Optimizer] | None = None
        hidden = [_without_hidden_key(group) for group in groups if group.get("hidden")]
        rest = [_without_hidden_key(group) for group in groups if not group.get("hidden")]
        # Each part checks its arguments and adds its defaults to its groups.
        options: dict[str, Any] = {"momentum": momentum, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        empty: list[dict[str, Any]] = [{"params": []}]
        muon = Muon(hidden or empty, lr=lr, weight_decay=weight_decay, **options)
        fused = not any(parameter.is_complex() for group in rest for parameter in group["params"])
        adamw = AdamW(rest or empty, lr=adamw_lr, weight_decay=weight_decay, betas=betas, fused=fused)
        for part, is_muon in ((muon, True), (adamw, False)):
            for group in part.param_groups:
                group["hidden"] = is_muon
        kept = [group for part in (muon, adamw) for group in part.param_groups if group["params"]]
        super().__init__(kept, {})
        self._parts = (muon, adamw)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters later, as BackboneFinetuning does; without `hidden`, all matrices go to Muon."""
        if self._parts is None:  # called by the constructor
            super().add_param_group(param_group)
            return
        given = dict(param_group)
        parameters = [given["params"]] if isinstance(given["params"], Tensor) else list(given["params"])
        for group in [given] if "hidden" in given else _split_by_shape(parameters):
            part = self._parts[0 if group.get("hidden") else 1]
            if group["params"]:
                part.add_param_group(_without_hidden_key({**given, **group}))  # checks it, and adds defaults
                super().add_param_group({**part.param_groups.pop(), "hidden": part is self._parts[0]})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both optimizers; returns the loss of `closure`, if given, which is called once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        assert self._parts is not None
        for part, is_muon in zip(self._parts, (True, False), strict=True):
            # Loading a checkpoint replaces groups and state, so give them to the parts in every step.
            part.param_groups = [group for group in self.param_groups if group["hidden"] is is_muon]
            part.state = self.state
            part.step()
        return loss


def _split_by_shape(parameters: list[Tensor]) -> list[dict[str, Any]]:
    hidden = [parameter for parameter in parameters if parameter.ndim == 2]
    return [
        {"params": hidden, "hidden": True},
        {"params": [parameter for parameter in parameters if parameter.ndim != 2]},
    ]


def _without_hidden_key(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "hidden"}
