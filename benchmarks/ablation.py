"""What each change for speed gives: training as it is, beside training with that one change undone.

python benchmarks/ablation.py [--data_dir FOLDER] [--pairs 9] [--quick]
"""

from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from table import DATA_DIR, Row, has, in_turn, parse, show
from training import alone, trained


class Change(NamedTuple):
    """A change for speed, and what undoes it.

    Args:
        recipe: a file of `configs/`.
        name: what was changed.
        values: other values in the code, by their full names.
        words: other words on the command line.
    """

    recipe: str
    name: str
    values: dict[str, Any]
    words: list[str]


def nothing(*_: Any) -> list[Any]:
    """In place of what a run would do."""
    return []


STEPS_PER_UPDATE = "src.engine.training.deferred_metrics.STEPS_PER_UPDATE"
KEEP_FREED_MEMORY = "src.engine.system.hardware.keep_freed_memory"
VIEWS = "src.engine.training.default_callbacks.tensorboard_callbacks"
# By domain.
CHANGES = {
    "vision": [
        Change("default", "metrics once in 50 steps", {STEPS_PER_UPDATE: 1}, []),
        Change("default", "a progress bar at a pace for people", {}, ["--trainer.callbacks+=RichProgressBar"]),
        Change("default", "log every tenth step", {}, ["--trainer.log_every_n_steps=1"]),
        Change("default", "one fused optimizer kernel", {}, ["--optimizer.fused=false"]),
        Change("default", "channels last", {"torch.channels_last": torch.contiguous_format}, []),
        Change("default", "bfloat16", {}, ["--precision=32-true"]),
        Change("default", "memory kept for the next step", {KEEP_FREED_MEMORY: nothing}, []),
        Change("default", "what TensorBoard shows", {VIEWS: nothing}, []),
    ],
    "text": [
        Change("text/shakespeare_gpt", "memory kept for the next step", {KEEP_FREED_MEMORY: nothing}, []),
        Change("text/shakespeare_gpt", "what TensorBoard shows", {VIEWS: nothing}, []),
        Change("text/shakespeare_gpt", "attention written out", {"src.text.gpt.LONGEST_WRITTEN_OUT": 0}, []),
        Change("text/shakespeare_gpt", "bfloat16", {}, ["--precision=32-true"]),
    ],
}


def changes() -> list[Change]:
    """Those of the domains that have not been deleted."""
    return [change for domain, found in CHANGES.items() if has(domain) for change in found]


def trained_with(words: list[str], values: dict[str, Any]) -> float:
    """Samples a second, with other values in the code."""
    for name, value in values.items():
        patch(name, value).start()  # this process trains once
    return trained(words)


def main() -> None:
    only = ("--only", {"default": "", "help": "a part of the changes' names"})
    options = parse(__doc__, DATA_DIR, only)
    rows = []
    chosen = [change for change in changes() if options.only in change.name]
    for change in chosen[::4] if options.quick else chosen:
        steps = 5 if options.quick else 30 if "gpt" in change.recipe else 100
        words = ["fit", "--accelerator=cpu", f"--config=configs/{change.recipe}.yaml", f"--trainer.max_steps={steps}"]
        words += [f"--trainer.limit_train_batches={steps}", "--trainer.limit_val_batches=1"]
        words += [f"--data.data_dir={options.data_dir}"] if options.data_dir else []
        words += [f"--trainer.val_check_interval={steps}"]

        without = alone(trained_with, [*words, *change.words], change.values)
        ours, theirs = in_turn(alone(trained, words), without, options.pairs)
        rows.append(Row(f"{Path(change.recipe).name}: {change.name}", "samples/s", ours, "without", theirs))
    show(rows, options.results)


if __name__ == "__main__":
    main()
