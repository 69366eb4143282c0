"""Test result and time of recipes, each run in its own process.

`reference.py` is measured before and after each run, in the same precision, so that times can be compared between
machines and hours: scaled time = seconds x images/s / `REFERENCE`, the time on the machine for which the targets were
set. Rows of float32 and of bfloat16 cannot be compared.

    python benchmarks/recipes.py --data_dir FOLDER [--recipes mnist_fast default] [--seeds 1 2 3] [--quick]
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from reference import REFERENCE, measure
from table import DATA_DIR, Row, parse, show

from src.engine.system.hardware import choose_precision

# Recipe in `configs/`, metric, and targets for the metric, the training time and the time of the whole process.
TARGETS = {
    "mnist_fast": ("vision/mnist_fast", "test/acc", "at least 0.99", "at most 8.2 scaled", "at most 20 scaled"),
    "default": ("default", "test/acc", "at least 0.994", "at most 60 scaled", ""),
    "mnist_best": ("vision/mnist_best", "test/acc", "at least 0.997", "at most 1500 scaled", ""),
    "shakespeare_gpt": ("text/shakespeare_gpt", "test/loss", "at most 1.6, aim 1.55", "at most 120 scaled", ""),
    "shakespeare_gpt_fast": ("text/shakespeare_gpt_fast", "test/loss", "at most 1.88", "at most 25 scaled", ""),
}


def main() -> None:
    options = parse(
        __doc__,
        DATA_DIR,
        ("--recipes", {"nargs": "+", "default": ["mnist_fast"], "choices": list(TARGETS)}),
        ("--seeds", {"nargs": "+", "type": int, "default": [1, 2, 3, 4, 5]}),
    )
    precision, _ = choose_precision("cpu")
    batches, seconds = (2, 2.0) if options.quick else (60, 10.0)
    rows = []
    for recipe in options.recipes:
        file, metric, *targets = TARGETS[recipe]
        found: dict[str, list[float]] = {"metric": [], "train": [], "total": [], "reference": []}
        for seed in options.seeds[:1] if options.quick else options.seeds:
            with tempfile.TemporaryDirectory() as folder:
                words = [f"--config=configs/{file}.yaml", f"--seed_everything={seed}", "--accelerator=cpu"]
                words += [f"--trainer.default_root_dir={folder}"]
                words += [f"--data.data_dir={options.data_dir}"] if options.data_dir else []
                words += ["--data.final=true"] if metric == "test/loss" else []
                if options.quick:
                    words += ["--trainer.limit_train_batches=5", "--trainer.max_steps=5"]
                    words += ["--trainer.val_check_interval=5"]
                speeds = [measure(batches, precision, seconds) for _ in range(3)]
                start = time.perf_counter()
                subprocess.run([sys.executable, "-m", "src.train", *words], check=True, capture_output=True)
                found["total"].append(time.perf_counter() - start)
                speeds += [measure(batches, precision, seconds) for _ in range(3)]
                (path,) = Path(folder).glob("*/version_0/metrics.json")
                metrics = json.loads(path.read_text(encoding="utf-8"))
            found["metric"].append(metrics[metric])
            found["train"].append(metrics["train_seconds"])
            found["reference"].append(sorted(speeds)[3])
        scale = [speed / REFERENCE[precision] for speed in found["reference"]]
        rows.append(Row(f"{recipe}: {metric}", "", found["metric"]))
        rows.append(Row(f"{recipe}: {metric}, mean", "", [statistics.mean(found["metric"])], target=targets[0]))
        for name, target in (("train", targets[1]), ("total", targets[2])):
            scaled = [seconds * factor for seconds, factor in zip(found[name], scale, strict=True)]
            rows.append(Row(f"{recipe}: {name}_seconds", "s", found[name], target=""))
            rows.append(Row(f"{recipe}: {name}_seconds, scaled", "s", scaled, target=target))
        rows.append(Row(f"{recipe}: reference speed", "images/s", found["reference"]))
    show(rows, options.results)


if __name__ == "__main__":
    main()
