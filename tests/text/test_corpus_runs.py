"""Reading a text in the middle of a run, and how much memory it takes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from src import ROOT
from src.text.gpt import GPT
from src.text.language_model import LanguageModel
from tests.text.test_corpus import module, own

MEASURE = """
import sys
from src.text.corpus import TextDataModule
data = TextDataModule(sys.argv[1], cache_dir=sys.argv[2], block_size=128, batch_size=32)
data.prepare_data()
import resource  # before the tokens are mapped
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
data.setup("fit")
for number, batch in enumerate(data.train_dataloader()):
    if number == 200: break
status = open("/proc/self/status").read()
print(most, int(status.split("RssAnon:")[1].split()[0]) // 1024)
"""


def test_two_halves_of_a_run_are_the_whole(tmp_path: Path) -> None:
    path = own(tmp_path, "To be, or not to be. " * 60)

    def fit(steps: int, ckpt_path: Path | None = None) -> tuple[Trainer, LanguageModel]:
        torch.manual_seed(3)
        task = LanguageModel(GPT(256, 8, d_model=16, num_heads=2, num_layers=1))
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = Trainer(max_epochs=steps, default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
        trainer.fit(task, module(tmp_path, path=path), ckpt_path=ckpt_path, weights_only=True)
        return trainer, task

    half, _ = fit(1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fit(2, tmp_path / "half.ckpt")
    _, whole = fit(2)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads private memory from /proc")
def test_private_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    used = []
    letters = np.random.default_rng(0).integers(97, 123, 2**20, dtype=np.uint8).tobytes()
    for megabytes in (5, 400):
        path = tmp_path / f"{megabytes}.txt"
        with open(path, "wb") as file:
            for _ in range(megabytes):
                file.write(letters)
        command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "cache")]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "FORK": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        used.append([int(one) for one in done.stdout.split()])
    for small, large in zip(*used, strict=True):  # the most while it is read and tokenized, and in training
        assert large - small < 60, used
