"""The tables of memory are what the script computes, and what it computes is what a run needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from src import ROOT
from tests.conftest import QUIET, program


def scaling(code: str) -> str:
    """What the script's functions say, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FORK": "1"}
    command = [sys.executable, "-c", f"import sys; sys.path.append('scripts'); from scaling import *; {code}"]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_page_is_what_the_script_computes() -> None:
    assert scaling("print(report())").strip() in (ROOT / "docs" / "scaling.md").read_text()


def peak(tmp_path: Path, name: str, d_model: int, num_heads: int, num_layers: int) -> float:
    """Peak memory in bytes of a run in two processes."""
    sizes = (f"--model.net.d_model={d_model}", f"--model.net.num_heads={num_heads}")
    words = ("fit", "--config=configs/text/shakespeare_gpt.yaml", "--config=configs/strategy/ddp.yaml", "--devices=2")
    words += (*sizes, f"--model.net.num_layers={num_layers}", "--model.net.tie_weights=true", "--data.batch_size=16")
    words += ("--data.source=python_reference", "--optimizer=AdamW", "--optimizer.lr=1e-4", "--lr_scheduler=null")
    words += (
        "--precision=32-true",
        "--trainer.max_steps=2",
        "--trainer.limit_val_batches=0",
        "--checkpoint.monitor=null",
    )
    words += ("--trainer.enable_checkpointing=false", "--trainer.callbacks=null", f"--name={name}")
    # malloc gives back what is free, so that the peak is of what is in use.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
    environment = {**malloc, "OMP_NUM_THREADS": "1"}
    done = program(*words, *QUIET, f"--trainer.default_root_dir={tmp_path}", **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((tmp_path / name / "version_0" / "metrics.json").read_text())
    return float(metrics["peak_memory_mb"]) * 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="malloc is told how to give memory back")
def test_a_run_needs_what_the_script_says(tmp_path: Path) -> None:
    code = "print(*(memory(Size('', *size, 256, 256, 8), 'ddp', 2, None) for size in ((1, 16, 2), (8, 512, 8))))"
    tiny, small = map(int, scaling(code).split())
    measured = peak(tmp_path, "small", 512, 8, 8) - peak(tmp_path, "tiny", 16, 2, 1)
    assert measured == pytest.approx(small - tiny, rel=0.15)
