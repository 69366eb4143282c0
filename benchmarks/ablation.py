"""What each change for speed gives: training as it is, beside training with that one change undone.

python benchmarks/ablation.py [--data_dir FOLDER] [--pairs 9] [--quick]
"""

import contextlib
from contextlib import AbstractContextManager
from functools import partial
from unittest.mock import patch

import torch
from overhead import trained
from table import DATA_DIR, Row, in_turn, parse, show

AS_IT_IS = contextlib.nullcontext()
# Recipe, change, and what undoes it: in the code, or on the command line.
CHANGES: list[tuple[str, str, AbstractContextManager[object], list[str]]] = [
    ("default", "metrics once in 50 steps", patch("src.models.task.STEPS_PER_UPDATE", 1), []),
    ("default", "a progress bar at a pace for people", AS_IT_IS, ["--trainer.callbacks+=RichProgressBar"]),
    ("default", "log every tenth step", AS_IT_IS, ["--trainer.log_every_n_steps=1"]),
    ("default", "one fused optimizer kernel", AS_IT_IS, ["--optimizer.fused=false"]),
    ("default", "channels last", patch("torch.channels_last", torch.contiguous_format), []),
    ("default", "bfloat16", AS_IT_IS, ["--precision=32-true"]),
    ("default", "what TensorBoard shows", patch("src.equipment.views", lambda *_: []), []),
    ("shakespeare_gpt", "what TensorBoard shows", patch("src.equipment.views", lambda *_: []), []),
    ("shakespeare_gpt", "attention written out", patch("src.models.gpt.LONGEST_WRITTEN_OUT", 0), []),
    ("shakespeare_gpt", "bfloat16", AS_IT_IS, ["--precision=32-true"]),
]


def trained_without(words: list[str], undone: AbstractContextManager[object]) -> float:
    with undone:
        return trained(words)


def main() -> None:
    only = ("--only", {"default": "", "help": "a part of the changes' names"})
    options = parse(__doc__, DATA_DIR, only)
    rows = []
    for recipe, change, undone, undoing in (one for one in CHANGES if options.only in one[1]):
        steps = 5 if options.quick else 30 if "gpt" in recipe else 100
        words = ["fit", "--accelerator=cpu", f"--config=configs/{recipe}.yaml", f"--trainer.max_steps={steps}"]
        words += [f"--trainer.limit_train_batches={steps}", "--trainer.limit_val_batches=1"]
        words += [f"--data.data_dir={options.data_dir}"] if options.data_dir else []
        words += [f"--trainer.val_check_interval={steps}"]

        without = partial(trained_without, [*words, *undoing], undone)
        values = in_turn(partial(trained, words), without, options.pairs)
        rows.append(Row(f"{recipe}: {change}", "samples/s", values[0], "without", values[1]))
    show(rows, options.results)


if __name__ == "__main__":
    main()
