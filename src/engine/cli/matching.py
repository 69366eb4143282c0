"""Matches model and data before they are built: tokenizer, and sizes of the network."""

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from src.engine.cli.config import setting
from src.engine.data.loading import announce
from src.engine.runs.checkpoint import checkpoint_errors, restore_data
from src.engine.system.classes import import_class
from src.engine.system.errors import constructor_errors


def match_model_and_data(cli: Any) -> None:
    """Give the data a pretrained network's tokenizer, and the network the sizes that depend on the data.

    Settings given by the user, a recipe or a checkpoint are not changed.
    """
    if cli.config.data is None:
        return
    data: Any = cli.config.data.get("init_args", {})
    model: dict[str, Any] = {"model": cli.config.model.get("init_args", {})}
    if isinstance(net := model["model"].get("net"), Namespace) and "init_args" in net:
        model = {"model.net": net.init_args, **model}
    before = setting(cli.saved, "data.tokenizer")
    is_other = isinstance(before, str) and "data.tokenizer" in cli.given and str(data["tokenizer"]) != before
    if cli.checkpoint and is_other:
        announce(f"--data.tokenizer {data['tokenizer']} is not used: the checkpoint has its own, {before}")
        data["tokenizer"] = before
    pretrained = model.get("model.net", {}).get("pretrained")
    if pretrained and "tokenizer" in data and "data.tokenizer" not in cli.given:
        data["tokenizer"] = pretrained
    elif pretrained and data.get("tokenizer", pretrained) != pretrained:
        rank_zero_info(f"Using the given tokenizer {data['tokenizer']}, not that of {pretrained}")
    if not hasattr(import_class(cli.config.data.class_path), "network_arguments"):
        return
    data_only: Any = Namespace(data=cli.config.data)  # type: ignore[no-untyped-call]
    with constructor_errors():
        cli.data = cli.parser.instantiate(data_only).data
    if cli.checkpoint:
        with checkpoint_errors(cli.config.ckpt_path):
            restore_data(cli.checkpoint, cli.data)  # before new tokenizers and labels are made
    for name, value in cli.data.network_arguments().items():
        key = next((key for key, arguments in model.items() if name in arguments), None)
        if key is not None and f"{key}.{name}" not in cli.given:
            model[key][name] = value
