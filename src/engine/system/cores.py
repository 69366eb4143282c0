"""The CPU cores that this process may use."""

import os
from pathlib import Path
from typing import Any

SHARE = Path("/sys/fs/cgroup/cpu.max")  # microseconds of CPU time in a period, on Linux
JOBS = "LIGHTNING_STARTER_JOBS"  # environment variable: number of searching processes that share this machine


def usable_cores() -> int:
    """The cores that this process may use, also within a container's share of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, SHARE.read_text(encoding="utf-8").split())
    except (OSError, ValueError):  # no such file, or "max"
        return cores
    return min(cores, max(1, quota // period))


def cores_per_process(trainer: Any) -> int:
    """The cores of this process of a Trainer (or None), one of several on this machine."""
    cores = usable_cores()
    of_task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    is_task = trainer is not None and os.environ.get("SLURM_NTASKS") == str(trainer.world_size)
    if is_task and of_task.isdigit() and cores <= int(of_task):
        return cores  # SLURM has bound each process to cores of its own
    processes = trainer.world_size // trainer.num_nodes if trainer else 1
    return max(1, cores // max(1, processes * int(os.environ.get(JOBS, "1"))))
