"""Reads model, data, optimizer and schedule from checkpoints of other people, as `runs/trust.py` allows; `--trust`."""

from typing import Any

from src.engine.cli.config import Option
from src.engine.cli.resolved_checkpoint import ResolvedCheckpoint
from src.engine.runs.trust import Trust, allowed_configuration, names_in
from src.engine.system.classes import Tree


def add_arguments(parser: Any) -> None:
    """Add the option to `src.train`."""
    parser.add_argument("--trust", type=str | None, help="Other module whose classes the checkpoint may use")


def checked_configuration(
    checkpoint: Tree, own: Tree, resolved: ResolvedCheckpoint, options: list[Option]
) -> tuple[Tree, Tree, list[str]]:
    """What `read_configuration` returns and raises; `own`: the configuration of the user's own run, if it is one."""
    trees = [own, *(tree for _, tree in resolved.loaded)]
    named = {path for tree in trees for path in names_in(tree)} | {str(value) for _, value in options}
    modules = tuple(str(value) for flag, value in options if flag == "--trust")
    trust = Trust(modules, frozenset(named), paths=bool(own))
    saved, model, unused = allowed_configuration(checkpoint, own, trust, str(resolved.path))
    if saved and not own:
        saved["model"] = model or None
    return saved, model, unused
