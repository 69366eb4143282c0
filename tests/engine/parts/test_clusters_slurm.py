"""A job of a real SLURM cluster of one machine is preempted, and goes on."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from src import ROOT
from src.engine.runs.checkpoint import read_checkpoint
from tests.conftest import wait_for
from tests.toy import RECIPE

EPOCHS = 60  # enough to be preempted before the end
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment of a running cluster."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"{missing[0]} is not installed: apt-get install slurm-wlm")
    if os.geteuid() != 0:
        pytest.skip("a cluster of one machine is started as root")
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, cpus=os.cpu_count()))
    munge = ["runuser", "-u", "munge", "--", "munged"]
    is_ours = subprocess.run(["munge", "-n"], capture_output=True).returncode != 0
    if is_ours:  # no such service runs
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge")
        subprocess.run([*munge, "--force"], check=False)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    for name in ("slurmctld", "slurmd"):
        subprocess.run([name, "-L", str(folder / f"{name}.log")], env=environment, check=True)
    yield environment
    subprocess.run(["scancel", "--user=root"], env=environment, check=False)
    end = time.monotonic() + 40  # a job that is left to end outlives its cluster
    while subprocess.run(["squeue", "-h"], env=environment, capture_output=True).stdout and time.monotonic() < end:
        time.sleep(0.5)
    for name in ("slurmd", "slurmctld"):
        with suppress(OSError, ValueError):  # it has not started
            os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)
    if is_ours:
        subprocess.run([*munge, "--stop"], check=False)


@pytest.mark.slow
def test_a_preempted_job_goes_on_in_its_own_run(tmp_path: Path, cluster: dict[str, str]) -> None:
    log = tmp_path / "job.txt"
    words = [f"--config={RECIPE}", "--accelerator=cpu", f"--max_epochs={EPOCHS}"]
    words += [f"--trainer.default_root_dir={tmp_path / 'logs'}", "--trainer.enable_progress_bar=false"]
    submit = ["sbatch", "--parsable", f"--output={log}", "scripts/train.sbatch", *words]
    environment = {**cluster, "PYTHON": sys.executable}
    # Another run of the same recipe, unfinished and newer, is not this job's.
    job = subprocess.run(submit, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    last = tmp_path / "logs" / "toy" / "version_0" / "checkpoints" / "last.ckpt"
    end = time.monotonic() + 120
    while not last.exists() and time.monotonic() < end:
        time.sleep(0.2)
    subprocess.run(["scontrol", "requeue", job], env=cluster, check=True)
    wait_for("stopped by SIGTERM", log, 40)
    stopped_at = read_checkpoint(str(last))["global_step"]
    other = tmp_path / "logs" / "toy" / "version_1"
    shutil.copytree(last.parents[1], other)
    (other / ".job").unlink()
    time.sleep(2)
    end = time.monotonic() + 60
    while "Continuing run" not in log.read_text() and time.monotonic() < end:
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=cluster, check=False)
        time.sleep(2)
    text = wait_for(r"test/acc", log, 200)
    assert re.search(r"Continuing run \S*version_0 from last.ckpt", text)
    assert sorted(path.name for path in last.parents[2].iterdir()) == ["version_0", "version_1"]
    assert read_checkpoint(str(last))["global_step"] == EPOCHS * 10 > stopped_at
