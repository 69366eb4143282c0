"""Processes that torchrun starts, on one machine or on several, are one run."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from src.engine.parts import clusters
from tests.conftest import QUIET
from tests.engine.runs.processes import DDP, only_run, run_in, start_torchrun
from tests.spies import inject_fault
from tests.toy import RECIPE

TOY = (f"--config={RECIPE}", "--model.net.dropout=0.3", "--max_epochs=3")


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
    return port


@pytest.mark.slow
def test_torchrun_starts_a_run_again_from_its_checkpoint(tmp_path: Path) -> None:
    common = (*TOY, "--precision=32-true", "--save_every_n_steps=5", *DDP)
    run_in(tmp_path / "whole", *common)
    # Without --standalone torch may keep the addresses of processes that are gone, and a restart not find its partners.
    words = ["--standalone", "--nnodes=1", "--nproc_per_node=2", "--max-restarts=3", "--monitor-interval=0.1"]
    train = [*common, *QUIET, f"--trainer.default_root_dir={tmp_path / 'again'}", "--ckpt_path=auto"]
    agent = start_torchrun(words, [*train, *inject_fault("kill", 12, tmp_path / "dead", rank=1)], tmp_path / "log")
    agent.join(300)
    assert agent.exitcode == 0, (tmp_path / "log").read_text()[-3000:]
    assert (tmp_path / "dead").exists()
    runs = [only_run(tmp_path / name) for name in ("whole", "again")]
    one, other = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in runs)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], value) for name, value in other.items())


@pytest.mark.slow
def test_two_nodes_under_torchrun_are_one_run(tmp_path: Path, unused_port: int) -> None:
    train = [*TOY, *QUIET, "--num_nodes=2", "--strategy=ddp", "--devices=1"]
    train += [f"--trainer.default_root_dir={tmp_path / 'two'}"]
    agents = []
    for rank in (0, 1):
        words = ["--nnodes=2", "--nproc_per_node=1", f"--node_rank={rank}", "--monitor-interval=0.1"]
        words += ["--master_addr=127.0.0.1", f"--master_port={unused_port}"]
        agents.append(start_torchrun(words, train, tmp_path / f"log-{rank}"))
    for agent in agents:
        agent.join(300)
    outputs = [(tmp_path / f"log-{rank}").read_text() for rank in (0, 1)]
    assert [agent.exitcode for agent in agents] == [0, 0], outputs
    assert ["test/acc" in output for output in outputs] == [True, False]
    assert (only_run(tmp_path / "two") / "checkpoints" / "best.ckpt").exists()


def test_torchrun_within_a_slurm_job_asks_its_own_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_RESTART_COUNT": "1", "SLURM_PROCID": "0"}
    values |= {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "0"}
    values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    asked: list[Any] = []

    class Store:
        def get(self, key: str) -> bytes:
            asked.append(key)
            return b"run"

        def set(self, *given: Any) -> None:
            asked.append(given)

    monkeypatch.setattr(clusters, "rendezvous", lambda *given: iter([(Store(), *given[1:])]))
    assert clusters.from_first_process("") == "run"
    assert asked[0] == "lightning_starter/run/0"  # torchrun has not started it again
