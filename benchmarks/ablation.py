"""Training speed with each optimization and without it.

python benchmarks/ablation.py [--data_dir FOLDER] [--pairs 9] [--quick]
"""

from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from table import DATA_DIR, Row, alternate, has_domain, parse, show
from training import in_own_process, samples_per_second


class Change(NamedTuple):
    """A speed optimization, and how to undo it.

    Args:
        recipe: a file in `configs/`, without suffix.
        name: name of the optimization.
        values: values to patch in the code, by dotted name.
        words: options to add on the command line.
    """

    recipe: str
    name: str
    values: dict[str, Any]
    words: list[str]


def do_nothing(*_: Any) -> list[Any]:
    """Replaces a patched function."""
    return []


STEPS_PER_UPDATE = "src.engine.training.deferred_metrics.STEPS_PER_UPDATE"
KEEP_FREED_MEMORY = "src.engine.system.hardware.keep_freed_memory"
PICTURES = ("dashboard", "evaluation_pictures", "network_pictures", "task_pictures", "throughput")
VIEWS = {f"src.engine.tensorboard.{name}.callbacks": do_nothing for name in PICTURES}
CHANGES = {
    "vision": [
        Change("default", "metrics updated every 50 steps", {STEPS_PER_UPDATE: 1}, []),
        Change("default", "fewer progress bar updates", {}, ["--trainer.callbacks+=RichProgressBar"]),
        Change("default", "logging every tenth step", {}, ["--trainer.log_every_n_steps=1"]),
        Change("default", "fused optimizer", {}, ["--optimizer.fused=false"]),
        Change("default", "channels last", {"torch.channels_last": torch.contiguous_format}, []),
        Change("default", "bfloat16", {}, ["--precision=32-true"]),
        Change("default", "freed memory kept", {KEEP_FREED_MEMORY: do_nothing}, []),
        Change("default", "gradient norm and speed logged", VIEWS, []),
    ],
    "text": [
        Change("text/shakespeare_gpt", "freed memory kept", {KEEP_FREED_MEMORY: do_nothing}, []),
        Change("text/shakespeare_gpt", "gradient norm and speed logged", VIEWS, []),
        Change("text/shakespeare_gpt", "manual attention", {"src.text.gpt.MAX_MANUAL_ATTENTION": 0}, []),
        Change("text/shakespeare_gpt", "bfloat16", {}, ["--precision=32-true"]),
    ],
}


def changes() -> list[Change]:
    """The changes of all domains that have not been deleted."""
    return [change for domain, found in CHANGES.items() if has_domain(domain) for change in found]


def patched_speed(words: list[str], values: dict[str, Any]) -> float:
    """Samples per second with patched values in the code."""
    for name, value in values.items():
        patch(name, value).start()  # never stopped: this process trains once only
    return samples_per_second(words)


def main() -> None:
    only = ("--only", {"default": "", "help": "part of a name: run only matching changes"})
    options = parse(__doc__, DATA_DIR, only)
    rows = []
    chosen = [change for change in changes() if options.only in change.name]
    for change in chosen[:1] if options.quick else chosen:
        steps = 5 if options.quick else 30 if "gpt" in change.recipe else 100
        words = ["fit", "--accelerator=cpu", f"--config=configs/{change.recipe}.yaml", f"--trainer.max_steps={steps}"]
        words += [f"--trainer.limit_train_batches={steps}", "--trainer.limit_val_batches=1"]
        words += [f"--data.data_dir={options.data_dir}"] if options.data_dir else []
        words += [f"--trainer.val_check_interval={steps}"]

        without = in_own_process(patched_speed, [*words, *change.words], change.values)
        ours, theirs = alternate(in_own_process(samples_per_second, words), without, options.pairs)
        rows.append(Row(f"{Path(change.recipe).name}: {change.name}", "samples/s", ours, "without", theirs))
    show(rows, options.results)


if __name__ == "__main__":
    main()
