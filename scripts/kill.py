"""Kill a run at random times, resume it, and compare it with an undisturbed run.

python scripts/kill.py [--kills 50] [--seed 0] [--folder FOLDER] [-- OPTIONS OF src.train]

Weights, optimizer, schedule and all values logged at every step must be equal bit by bit; otherwise the exit code is 1.
Without options for src.train, the default recipe is trained on sample digits. Precision is 32-true.
"""

import argparse
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ["--data.source=sample", "--max_epochs=3", "--data.max_warp=1"]
ALWAYS = [
    "--precision=32-true",
    "--accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.log_every_n_steps=1",
]
COMPARED = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "half_epoch")
START_SECONDS = 120.0


@contextmanager
def start(options: list[str], folder: Path) -> "Iterator[subprocess.Popen[str]]":
    """A run in its own process group, which ends with this block."""
    command = [sys.executable, "-m", "src.train", *options, f"--trainer.default_root_dir={folder}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finish(process: "subprocess.Popen[str]") -> None:
    """Wait for a run; exit if it failed."""
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"a run failed with code {process.returncode}:\n{output[-3000:]}")


def checkpoint_times(folder: Path) -> set[tuple[str, float]]:
    """Paths and modification times of the last checkpoints."""
    return {(str(path), path.stat().st_mtime) for path in folder.glob("*/*/checkpoints/last.ckpt")}


def kill_at_random(process: "subprocess.Popen[str]", folder: Path, rng: random.Random) -> bool:
    """Kill a run up to 1.5 seconds after its next checkpoint; False if the run finished before."""
    before, end = checkpoint_times(folder), time.monotonic() + START_SECONDS
    while process.poll() is None and checkpoint_times(folder) == before and time.monotonic() < end:
        time.sleep(0.01)
    wait_until = time.monotonic() + rng.uniform(0, 1.5)
    while process.poll() is None and time.monotonic() < wait_until:
        time.sleep(0.01)
    if process.poll() is not None:
        finish(process)
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    # It may have been killed after it finished training.
    return not any("total_seconds" in path.read_text() for path in folder.glob("*/*/metrics.json"))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All logged values as (step, value), by tag, as TensorBoard shows them."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns that it drops steps logged before a kill
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("speed/")]  # never the same twice
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def differing_keys(one: Any, other: Any, name: str) -> list[str]:
    """Paths of the values that differ between two nested structures."""
    if isinstance(one, torch.Tensor):
        return [] if isinstance(other, torch.Tensor) and torch.equal(one, other) else [name]
    if isinstance(one, dict):
        keys = one.keys() | other.keys()
        return [found for key in keys for found in differing_keys(one.get(key), other.get(key), f"{name}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [name]
        pairs = enumerate(zip(one, other, strict=True))
        return [found for i, pair in pairs for found in differing_keys(*pair, f"{name}[{i}]")]
    return [] if one == other else [name]


def differences(one: Path, other: Path) -> list[str]:
    """Names of the curves and checkpoint values that differ between two run folders."""
    found = [f"curve {name}" for name in differing_keys(scalars(one), scalars(other), "") if name]
    first, second = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other))
    return found + [name for key in COMPARED for name in differing_keys(first[key], second[key], key)]


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder")
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    options = [*(given.options or DEFAULT), *ALWAYS, "--save_every_n_steps=5"]
    folder = Path(given.folder or tempfile.mkdtemp(prefix="kill-"))
    with start(options, folder / "whole") as process:
        finish(process)
    rng = random.Random(given.seed)
    kills = 0
    while kills < given.kills:
        with start([*options, "--ckpt_path=auto"], folder / "killed") as process:
            if not kill_at_random(process, folder / "killed", rng):
                break
        kills += 1
        print(f"kill {kills}", flush=True)
    else:
        with start([*options, "--ckpt_path=auto"], folder / "killed") as process:
            finish(process)
    (whole,), killed = (list((folder / name).glob("*/version_*")) for name in ("whole", "killed"))
    if len(killed) != 1:
        sys.exit(f"a killed run must continue in its own folder, but there are {len(killed)} folders")
    found = differences(whole, killed[0])
    count = sum(len(values) for values in scalars(whole).values())
    print(f"{kills} kills; {count} logged values compared; {len(found)} differences {found[:10]}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
