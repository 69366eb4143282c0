"""SLURM and torchrun: several nodes and restarted jobs are one run; `scripts/train.sbatch` is a job for SLURM."""

import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch import distributed
from torch.distributed.rendezvous import rendezvous

AGREEMENT_SECONDS = 300


def mark_run(folder: Path) -> None:
    """Write the job name to the run folder, so that a restarted job finds its run."""
    if job := job_name():
        (folder / ".job").write_text(job, encoding="utf-8")


def may_continue(folder: Path) -> bool:
    """Whether this job may continue a run by itself.

    A SLURM job or a job restarted by torchrun only continues its own run, and a SLURM job's run is only continued by
    that job.
    """
    job = job_name()
    owner = (folder / ".job").read_text(encoding="utf-8") if (folder / ".job").is_file() else ""
    return owner == job or not (job.startswith("slurm") or restarts() > 0 or owner.startswith("slurm"))


def job_name() -> str:
    """Name of this SLURM or torchrun job, the same after a restart; empty without either."""
    if SLURMEnvironment.detect():
        ids = [os.environ.get(name, "") for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")]
        return f"slurm {'_'.join(ids) if all(ids) else os.environ['SLURM_JOB_ID']}"
    if TorchElasticEnvironment.detect():
        run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return f"torchrun {address if run_id == 'none' else run_id}"
    return ""


def restarts() -> int:
    """How often the job was restarted."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) or _attempt()


def _attempt() -> int:
    """How often torchrun has started its processes again, which then share a store."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def from_first_process(value: str) -> str:
    """The value of the job's first process; with SLURM or torchrun, all processes wait for it."""
    # As Lightning chooses: torchrun may run within a SLURM job.
    environment = next((e for e in (TorchElasticEnvironment, SLURMEnvironment) if e.detect()), None)
    if environment is None:
        return value
    cluster = environment()
    world, rank = cluster.world_size(), cluster.global_rank()
    if world == 1:
        return value
    os.environ.setdefault("MASTER_ADDR", cluster.main_address)
    os.environ.setdefault("MASTER_PORT", str(cluster.main_port))
    store, *_ = next(rendezvous("env://", rank, world))
    key = f"lightning_starter/run/{_attempt()}"
    if rank == 0:
        store.set(key, value)
        # This process may host the store, so it waits until all others have read the value.
        with suppress(RuntimeError):  # too late
            store.wait([f"{key}/{other}" for other in range(1, world)], timedelta(seconds=AGREEMENT_SECONDS))
        return value
    received: str = store.get(key).decode()
    store.set(f"{key}/{rank}", "read")
    return received


def before_run(trainer: Any) -> None:
    """Connect the processes of a job restarted by torchrun; each attempt with its own prefix of the store.

    The store of all attempts may still have the addresses of earlier ones.
    """
    device = trainer.strategy.root_device
    if not (TorchElasticEnvironment.detect() and _attempt()) or distributed.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, world = next(rendezvous("env://"))
    store = distributed.PrefixStore(f"attempt/{_attempt()}", store)  # type: ignore[attr-defined]
    backend = distributed.get_default_backend_for_device(device)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
