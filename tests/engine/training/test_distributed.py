"""Several processes train what one would, count every sample once, and fall together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src import ROOT
from src.engine.runs.checkpoint import load_model, read_checkpoint
from tests.conftest import QUIET, Run, program
from tests.spies import misfortune

Train = Callable[..., Run]

TWO = ("--devices=2", "--strategy=ddp")
CNN = (
    "--model.net=CNN",
    "--model.net.width=4",
    "--model.net.hidden=16",
    "--data.source=sample",
    "--data.max_shift=0",
    "--data.max_rotation=0",
    "--data.max_scale=0",
    "--max_epochs=1",
)
GPT = (
    "--config=configs/text/shakespeare_gpt_fast.yaml",
    "--model.net.d_model=16",
    "--model.net.num_heads=2",
    "--model.net.num_layers=2",
    "--data.block_size=16",
    "--data.batch_size=4",
    "--trainer.val_check_interval=5",
    "--trainer.max_steps=10",
)
TINY_ENCODER = (
    "--config=configs/text/language_id.yaml",
    "--model.net.d_model=8",
    "--model.net.num_heads=2",
    "--model.net.num_layers=1",
    "--model.net.dropout=0",
)


def two(tmp_path: Path, *args: str, ok: bool = True, **env: str) -> "subprocess.CompletedProcess[str]":
    """A run in two processes, one thread each."""
    root = f"--trainer.default_root_dir={tmp_path / 'two'}"
    done = program(*args, *QUIET, root, OMP_NUM_THREADS="1", **env)
    assert not ok or done.returncode == 0, done.stderr[-3000:]
    return done


def run_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "two").glob("*/version_*")
    return folder


def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def spy(path: Path) -> tuple[str, ...]:
    return ("--trainer.callbacks+=tests.spies.StepLosses", f"--trainer.callbacks.path={path}")


def test_two_processes_train_on_images_as_one_does(train: Train, tmp_path: Path) -> None:
    exact = (*CNN, "--precision=64-true", "--model.net.dropout=0")
    one = train(*exact, *spy(tmp_path / "one.json"), sample=False)
    done = two(tmp_path, *exact, *TWO, *spy(tmp_path / "two.json"))
    losses, others = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert len(losses) == 32  # the last batch has 32 images, not 128
    assert others == pytest.approx(losses, rel=1e-9)
    (folder,) = (tmp_path / "two").glob("*/version_*")  # one run folder for both
    assert len(list(folder.glob("events.out.tfevents*"))) == 3  # of training, test and end, by one process
    for name in ("test/loss", "test/acc", "test/f1", "val/loss", "train/loss", "train/acc"):
        assert metrics(folder)[name] == pytest.approx(one.metrics[name], rel=1e-6)
    assert done.stdout.count("test/acc") == 1


@pytest.mark.slow
def test_two_processes_train_on_text_as_one_does(train: Train, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("it was the best of times, it was the worst of times\n" * 150)
    exact = (*GPT, "--precision=32-true", f"--data.path={text}", f"--data.cache_dir={tmp_path}")
    one = train(*exact, *spy(tmp_path / "one.json"), sample=False)
    two(tmp_path, *exact, *TWO, *spy(tmp_path / "two.json"))
    losses, others = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert len(losses) == 10
    assert others == pytest.approx(losses, rel=1e-5)
    tokens = len(one.cli.datamodule.test_set.tokens) - 1
    assert -(-tokens // 16) % 4 == 1  # one process has nothing in the last batch
    assert metrics(run_folder(tmp_path))["test/loss"] == pytest.approx(one.metrics["test/loss"], rel=1e-4)


@pytest.fixture
def table(tmp_path: Path) -> tuple[str, ...]:
    """Texts of which 1,001 are for the test."""
    rows = ["text,label", *(f"{'abc'[i % 3] * (i % 7 + 1)},{'xyz'[i % 3 if i % 5 else 0]}" for i in range(1001))]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    (tmp_path / "train.csv").write_text("\n".join(rows[:100]))
    return (
        f"--data.path={tmp_path / 'train.csv'}",
        f"--data.val_path={tmp_path / 'train.csv'}",
        f"--data.test_path={tmp_path / 'table.csv'}",
        "--data.batch_size=1000",
    )


@pytest.mark.parametrize("strategy", ["ddp", "FSDP2Strategy"])
@pytest.mark.slow
def test_every_one_of_1001_samples_counts_once(
    train: Train, tmp_path: Path, table: tuple[str, ...], strategy: str
) -> None:
    words = (*TINY_ENCODER, *table, "--precision=32-true")
    fitted = train("fit", *words, "--max_epochs=1", sample=False)
    path = fitted.folder / "checkpoints" / "last.ckpt"
    one = train("test", *words, f"--ckpt_path={path}", sample=False)
    two(tmp_path, "test", *words, f"--ckpt_path={path}", "--devices=2", f"--strategy={strategy}")
    folder = run_folder(tmp_path)
    for name in ("test/loss", "test/acc", "test/f1"):
        assert metrics(folder)[name] == pytest.approx(one.metrics[name], rel=1e-6)
    matrix = [line.split(",")[1:] for line in (folder / "confusion_matrix.csv").read_text().splitlines()[1:]]
    assert sum(int(count) for row in matrix for count in row) == 1001


@pytest.mark.slow
def test_fsdp2_trains_goes_on_and_becomes_one_file(train: Train, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("it was the best of times, it was the worst of times\n" * 150)
    words = (*GPT, f"--data.path={text}", f"--data.cache_dir={tmp_path}", "--precision=32-true", "--optimizer=AdamW")
    exact = (*words, "--optimizer.lr=1e-3", "--lr_scheduler=null")
    sharded = ("--config=configs/strategy/fsdp2.yaml", "--trainer.strategy.gather_dtype=float32", "--devices=2")
    one = train(*exact, *spy(tmp_path / "one.json"), sample=False)
    two(tmp_path, "fit", *exact, *sharded, "--trainer.max_steps=5")
    folder = run_folder(tmp_path)
    assert (folder / "checkpoints" / "last.ckpt").is_dir()
    two(tmp_path, "--run", str(folder), "--trainer.max_steps=10", *spy(tmp_path / "two.json"))
    losses, others = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert others == pytest.approx(losses[5:], rel=1e-4)

    last = folder / "checkpoints" / "last.ckpt"
    refused = program("test", f"--ckpt_path={last}", "--strategy=auto", "--devices=1", *QUIET)
    assert refused.returncode == 2
    assert "is sharded: give --config configs/strategy/fsdp2.yaml too, or make one file of it" in refused.stderr
    whole = tmp_path / "whole.ckpt"
    done = program(f"--ckpt_path={last}", f"--output={whole}", module="src.consolidate")
    assert done.returncode == 0, done.stderr
    models = [load_model(read_checkpoint(str(path)), "generate", str(path)) for path in (whole, one_last(one))]
    tokens = torch.randint(0, 256, (2, 16))
    assert torch.allclose(models[0](tokens), models[1](tokens), atol=1e-4)
    goes_on = train("fit", f"--ckpt_path={whole}", *sharded_off(), "--trainer.max_steps=12", sample=False)
    assert goes_on.cli.trainer.global_step == 12  # optimizer and all
    again = program(f"--ckpt_path={last}", f"--output={whole}", module="src.consolidate")
    assert again.returncode == 2
    assert "is there already" in again.stderr


def one_last(run: Run) -> Path:
    return run.folder / "checkpoints" / "last.ckpt"


def sharded_off() -> tuple[str, ...]:
    return ("--strategy=auto", "--devices=1")


@pytest.mark.slow
def test_a_batch_that_processes_cannot_share_is_one_line(tmp_path: Path) -> None:
    done = two(tmp_path, *CNN, *TWO, "--data.batch_size=33", ok=False)
    assert done.returncode == 2
    assert re.search(r"^error: .*batch_size 33 .* 2 processes .* give 32 or 34$", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_where_one_process_dies_the_other_ends(tmp_path: Path) -> None:
    start = time.monotonic()
    words = ("fit", *CNN, *TWO, "--max_epochs=100", *misfortune("kill", 40, tmp_path / "dead", rank=1))
    done = two(tmp_path, *words, ok=False)
    assert done.returncode not in (0, None)
    assert time.monotonic() - start < 90  # of which it must take no more than 30 to notice
    assert not processes_of(tmp_path)


def processes_of(tmp_path: Path) -> list[str]:
    """Processes that still have the test's folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(tmp_path) in words and "src.train" in words:
            found.append(words)
    return found


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    words = ("fit", *CNN, *TWO, "--max_epochs=100", *misfortune("terminate", 40, tmp_path / "told"))
    done = two(tmp_path, *words, ok=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in done.stderr
    folder = run_folder(tmp_path)
    assert f"--ckpt_path last --run {folder}" in done.stderr
    assert read_checkpoint(str(folder / "checkpoints" / "last.ckpt"))["global_step"] in (41, 42)
    assert not processes_of(tmp_path)


@pytest.mark.slow
def test_torchrun_starts_a_run_again_from_its_checkpoint(tmp_path: Path) -> None:
    common = (*CNN, "--precision=32-true", "--max_epochs=3", "--save_every_n_steps=5", *TWO)
    two(tmp_path, *common)
    whole = run_folder(tmp_path)
    root = f"--trainer.default_root_dir={tmp_path / 'again'}"
    # Without --standalone torch may keep the addresses of processes that are gone, and a restart not find its partners.
    words = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2", "--max-restarts=3"]
    words += ["-m", "src.train", *common, *QUIET, root, "--ckpt_path=auto"]
    words += misfortune("kill", 40, tmp_path / "dead", rank=1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "again").glob("*/version_*")
    weights = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, folder)]
    assert all(torch.equal(weights[0]["state_dict"][name], value) for name, value in weights[1]["state_dict"].items())


@pytest.mark.slow
def test_two_nodes_under_torchrun_are_one_run(tmp_path: Path) -> None:
    def agent(rank: int) -> "subprocess.Popen[str]":
        words = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", f"--node_rank={rank}"]
        words += ["--master_addr=127.0.0.1", "--master_port=29667", "-m", "src.train", *CNN, *QUIET, "--num_nodes=2"]
        words += ["--strategy=ddp", "--devices=1", f"--trainer.default_root_dir={tmp_path / 'two'}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *words]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    agents = [agent(0), agent(1)]
    outputs = [process.communicate(timeout=200) for process in agents]
    assert [process.returncode for process in agents] == [0, 0], outputs
    assert ["test/acc" in out for out, _ in outputs] == [True, False]
    assert (run_folder(tmp_path) / "checkpoints" / "best.ckpt").exists()


@pytest.mark.slow
def test_two_killed_processes_go_on_exactly(tmp_path: Path) -> None:
    words = [str(ROOT / "scripts" / "kill.py"), "--kills", "2", "--folder", str(tmp_path), "--", *CNN, *TWO]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words, "--max_epochs=4", "--data.num_workers=2"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[12] kills; \d+ logged values compared; 0 differences", done.stdout)
