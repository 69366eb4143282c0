"""Runs this project on one NVIDIA GPU, in at most nine minutes: accuracy, speed, memory, resuming, all recipes.

Each part is a process of its own: if one fails or reaches its time limit, this is reported with the values so far, and
the next one starts. Nothing is downloaded: without --data_dir the samples are used. The last line is a JSON object with
all values. Exit code 1: a part failed; 2: there is no GPU.

    python benchmarks/gpu.py [--data_dir FOLDER] [--only gpt resume] [--pairs 3] [--quick]
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import gpu_parts as parts
import torch
from table import DATA_DIR, ROOT, describe, has_domain, parse

SECONDS = 530.0  # for all parts
GRACE = 10.0  # seconds for a part to end what it has started

# Function, longest time in seconds, and the domain it needs.
PARTS: dict[str, tuple[Callable[[Any], parts.Values], int, str]] = {
    "default": (parts.default, 90, "vision"),
    "gpt": (parts.gpt, 150, "text"),
    "images": (parts.images, 90, "vision"),
    "resident": (partial(parts.images, resident=True), 80, "vision"),
    "waits": (parts.waits, 60, "vision"),
    "memory": (parts.memory, 40, "text"),
    "fsdp2": (parts.fsdp2, 50, "text"),
    "resume": (parts.resume, 90, "vision"),
    "deploy": (parts.deploy, 100, "vision"),
    "recipes": (parts.recipes, 150, "vision"),
}


def run_part(name: str, seconds: float | None) -> parts.Values:
    """Run a part in its own process, with the same options; returns its values or what went wrong."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "values.json"
        words = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--part", name, "--values", str(file)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(words, env=environment, start_new_session=True)
        try:
            code = process.wait(seconds)
            problem = f"exit code {code}, see above" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"stopped after {seconds:.0f} s"
        finally:
            if process.poll() is None:
                stop(process)
        values = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {**values, **({"failed": problem} if problem else {}), "seconds": round(time.perf_counter() - start, 1)}


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a part: first it ends what it has started in other process groups, see `main`; then all that is left."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    known = [name for name, (_, _, domain) in PARTS.items() if has_domain(domain)]
    options = parse(
        __doc__,
        DATA_DIR,
        ("--only", {"nargs": "+", "choices": known, "default": known, "metavar": "PART", "help": ", ".join(known)}),
        ("--cpu", {"action": "store_true", "help": "try this script on a CPU, with --quick"}),
        ("--part", {"choices": known, "help": "run this part in this process"}),
        ("--values", {"type": Path, "help": "file for the values of --part"}),
    )
    options.pairs = min(options.pairs, 3)
    options.quick = options.quick or options.cpu
    options.device, options.accelerator = ("cpu", "cpu") if options.cpu else ("cuda", "gpu")
    if not options.cpu and not torch.cuda.is_available():
        print("error: this machine has no NVIDIA GPU that torch can use: --cpu tries the script", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))  # runs every `finally`
    if options.part:
        parts.keep(options, PARTS[options.part][0](options))
        return
    print(json.dumps(describe()), flush=True)
    end = time.perf_counter() + SECONDS
    found: dict[str, parts.Values] = {}
    for name in options.only:
        left = end - time.perf_counter()
        print(f"{name} ...", flush=True)
        limit = None if options.cpu else min(PARTS[name][1], left)
        found[name] = run_part(name, limit) if options.cpu or left > 0 else {"failed": "no time left"}
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    print(json.dumps({"machine": describe(), "parts": found}))
    sys.exit(1 if any("failed" in values for values in found.values()) else 0)


if __name__ == "__main__":
    main()
