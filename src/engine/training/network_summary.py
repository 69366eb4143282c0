"""Prints the size of a network."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_summary import get_human_readable_count
from rich.console import Console
from rich.table import Table
from torch import nn


class NetworkSummary(Callback):
    """Prints the parts of the network and their parameter counts when training begins.

    Lightning's ModelSummary also lists metrics, and cannot estimate the size in mixed precision.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        net: Any = getattr(pl_module, "net", pl_module)
        table = Table("part", "type", "parameters", title=type(net).__name__, title_justify="left", title_style="bold")
        table.columns[2].justify = "right"
        for name, part in net.named_children():
            if count := _count(part):
                table.add_row(name, type(part).__name__, count)
        table.add_section()
        num_frozen = sum(one.numel() for one in net.parameters() if not one.requires_grad)
        frozen = f"{get_human_readable_count(num_frozen).strip()} frozen" if num_frozen else ""
        table.add_row("all", frozen, _count(net))
        Console().print(table)


def _count(module: nn.Module) -> str:
    count = sum(one.numel() for one in module.parameters())
    return get_human_readable_count(count).strip() if count else ""
