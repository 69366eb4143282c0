"""Seconds of a command that chooses how its threads wait, and of one whose threads spin, as libgomp's do by default.

Each kind runs on a machine that does nothing else, which you must see to, and next to a process that keeps a core busy.

    python benchmarks/sharing.py [--pairs 9] [--quick] [--only training ddp search serving]
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from serving import Server, free_ports, load, train_fast_recipe
from table import ROOT, Row, alternate, parse, show

SPIN = {"GOMP_SPINCOUNT": "300000"}  # libgomp's default; see src/__init__.py
FIT = ["fit", "--config=configs/vision/mnist_fast.yaml", "--data.source=sample", "--accelerator=cpu"]
FIT += ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=1", "--trainer.max_epochs=100"]
SEARCH = ["--config=configs/tune/mnist.yaml", "--data.source=sample", "--jobs=2", "--trainer.max_epochs=2"]


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started."""
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]


def fit_seconds(words: list[str], steps: int, values: dict[str, str]) -> float:
    """Training time of a run, without start and end."""
    with tempfile.TemporaryDirectory() as folder, environment(values):
        more = [f"--trainer.max_steps={steps}", f"--trainer.default_root_dir={folder}", *words]
        subprocess.run([sys.executable, "-m", "src.train", *FIT, *more], cwd=ROOT, check=True, capture_output=True)
        path = next(Path(folder).glob("*/version_0/metrics.json"))
        return float(json.loads(path.read_text(encoding="utf-8"))["train_seconds"])


def search_seconds(trials: int, values: dict[str, str]) -> float:
    """Time that the trials of a search took together."""
    with tempfile.TemporaryDirectory() as folder, environment(values):
        more = [f"--n_trials={trials}", "--sampler=RandomSampler", f"--trainer.default_root_dir={folder}"]
        subprocess.run([sys.executable, "-m", "src.tune", *SEARCH, *more], cwd=ROOT, check=True, capture_output=True)
        found = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).rglob("metrics.json")]
        return float(sum(one["train_seconds"] for one in found))


def serving_seconds(path: str, seconds: float, values: dict[str, str]) -> float:
    """Seconds per thousand answers of the service to 64 clients."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "src.serve", "--ckpt_path", path, "--port", str(port), "--accelerator", "cpu"]
    with environment(values):
        server = Server(command, port, Path(path).with_name("serve.log"))
    try:
        body = json.dumps([[0] * 28] * 28).encode()
        return 1000 / float(asyncio.run(load(port, [body], [], seconds))["rate"])
    finally:
        server.stop()


def main() -> None:
    known = ["training", "ddp", "search", "serving"]
    options = parse(__doc__, ("--only", {"nargs": "+", "choices": known, "default": known}))
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):  # of this process: those that it starts choose for themselves
        os.environ.pop(name, None)
    steps, rows = (3 if options.quick else 120), []
    with tempfile.TemporaryDirectory() as folder:
        path = train_fast_recipe(folder, options.quick) if "serving" in options.only and not options.quick else ""
        kinds = {
            "training": partial(fit_seconds, [], steps),
            "ddp": partial(fit_seconds, ["--devices=2", "--strategy=ddp"], steps),
            "search": partial(search_seconds, 4),
            "serving": partial(serving_seconds, path, 5.0),
        }
        for name in options.only[:1] if options.quick else options.only:
            for what in ("alone", "next to a busy process"):
                busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if what != "alone" else None
                try:
                    ours, theirs = alternate(partial(kinds[name], {}), partial(kinds[name], SPIN), options.pairs)
                finally:
                    if busy is not None:
                        busy.kill()
                        busy.wait()
                target = "ratio at most 1.02" if what == "alone" else ""
                rows.append(Row(f"sharing: {name}, {what}", "s", ours, "threads spin", theirs, target))
    show(rows, options.results)


if __name__ == "__main__":
    main()
