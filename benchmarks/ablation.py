"""What each change for speed gives: training as it is, beside training with that one change undone.

python benchmarks/ablation.py [--data_dir FOLDER] [--pairs 9] [--quick]
"""

from typing import Any
from unittest.mock import patch

import torch
from overhead import alone, trained
from table import DATA_DIR, Row, in_turn, parse, show


def nothing(*_: Any) -> list[Any]:
    """In place of what a run would do."""
    return []


# Recipe, change, and what undoes it: another value in the code, or words on the command line.
CHANGES: list[tuple[str, str, dict[str, Any], list[str]]] = [
    ("default", "metrics once in 50 steps", {"src.tasks.task.STEPS_PER_UPDATE": 1}, []),
    ("default", "a progress bar at a pace for people", {}, ["--trainer.callbacks+=RichProgressBar"]),
    ("default", "log every tenth step", {}, ["--trainer.log_every_n_steps=1"]),
    ("default", "one fused optimizer kernel", {}, ["--optimizer.fused=false"]),
    ("default", "channels last", {"torch.channels_last": torch.contiguous_format}, []),
    ("default", "bfloat16", {}, ["--precision=32-true"]),
    ("default", "memory kept for the next step", {"src.engine.system.hardware.keep_freed_memory": nothing}, []),
    ("default", "what TensorBoard shows", {"src.engine.training.default_callbacks.views": nothing}, []),
    ("shakespeare_gpt", "memory kept for the next step", {"src.engine.system.hardware.keep_freed_memory": nothing}, []),
    ("shakespeare_gpt", "what TensorBoard shows", {"src.engine.training.default_callbacks.views": nothing}, []),
    ("shakespeare_gpt", "attention written out", {"src.text.gpt.LONGEST_WRITTEN_OUT": 0}, []),
    ("shakespeare_gpt", "bfloat16", {}, ["--precision=32-true"]),
]


def trained_with(words: list[str], values: dict[str, Any]) -> float:
    """Samples a second, with other values in the code."""
    for name, value in values.items():
        patch(name, value).start()  # this process trains once
    return trained(words)


def main() -> None:
    only = ("--only", {"default": "", "help": "a part of the changes' names"})
    options = parse(__doc__, DATA_DIR, only)
    rows = []
    chosen = [one for one in CHANGES if options.only in one[1]]
    for recipe, change, values, undoing in chosen[::4] if options.quick else chosen:
        steps = 5 if options.quick else 30 if "gpt" in recipe else 100
        words = ["fit", "--accelerator=cpu", f"--config=configs/{recipe}.yaml", f"--trainer.max_steps={steps}"]
        words += [f"--trainer.limit_train_batches={steps}", "--trainer.limit_val_batches=1"]
        words += [f"--data.data_dir={options.data_dir}"] if options.data_dir else []
        words += [f"--trainer.val_check_interval={steps}"]

        without = alone(trained_with, [*words, *undoing], values)
        ours, theirs = in_turn(alone(trained, words), without, options.pairs)
        rows.append(Row(f"{recipe}: {change}", "samples/s", ours, "without", theirs))
    show(rows, options.results)


if __name__ == "__main__":
    main()
