"""Time and memory from a table with a million rows: this project, and pandas with a plain loop.

Texts, to the first batch: the plain loop reads the table, draws a random split and pads the first batch of bytes; ours
also checks labels, empty texts and copies in several parts, and sorts texts by length. Numbers, to the first step:
both read the table with pandas, standardise the targets and train a network for one step; ours with `Regressor` and
Lightning's Trainer, whose DataModule and loader are those of a new project. Each run has its own process; its memory
is the peak of RssAnon, less that of the imports.

    python benchmarks/table_start.py [--pairs 9] [--quick]
"""

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from table import Row, alternate, parse, show
from training import in_own_process


def make_table(path: Path, rows: int) -> None:
    """Write a CSV of random words in three classes, about 107 bytes a row."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for number in range(rows):
            text = " ".join(draw.choices(words, k=draw.randint(5, 25)))
            file.write(f"{text},{('negative', 'neutral', 'positive')[number % 3]}\n")


def make_numbers(path: Path, rows: int) -> None:
    """Write a CSV of ten random numbers and a target."""
    import numpy as np

    values = np.random.default_rng(0).normal(size=(rows, 11))
    names = [*(f"x{number}" for number in range(10)), "y"]
    np.savetxt(path, values, "%.5f", ",", header=",".join(names), comments="")


def anonymous() -> float:
    """Memory of this process that the system cannot free, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds and MB that some work takes."""
    base = anonymous()
    peak = [base]

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun, peak[0] - base


def start_texts(is_ours: bool, path: str) -> tuple[float, float]:
    """Seconds and MB until the first batch is there."""
    import numpy as np
    import pandas as pd
    import torch
    from pyarrow import csv  # noqa: F401

    from src.text.labelled_text import LabelledTextDataModule

    def ours() -> None:
        data = LabelledTextDataModule(path)
        data.setup("fit")
        next(iter(data.train_dataloader()))

    def theirs() -> None:
        table = pd.read_csv(path)
        targets = torch.from_numpy(table.label.astype("category").cat.codes.to_numpy().astype(np.int64))
        train, _, _ = torch.randperm(len(table)).tensor_split([len(table) * 8 // 10, len(table) * 9 // 10])
        texts = [torch.tensor(list(text.encode()[:256])) for text in table.text.iloc[train[:32].numpy()]]
        _ = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True), targets[train[:32]]

    return measured(ours if is_ours else theirs)


def start_numbers(is_ours: bool, path: str) -> tuple[float, float]:
    """Seconds and MB until the first step is done."""
    import pandas as pd
    import torch
    from lightning.pytorch import LightningDataModule, Trainer
    from torch import Tensor, nn
    from torch.utils.data import Dataset

    from src.engine.data.loading import Batches, batch_loader, shuffled
    from src.tasks.regressor import Regressor

    def read() -> tuple[Tensor, Tensor]:
        values = torch.from_numpy(pd.read_csv(path, dtype="float32").to_numpy(copy=True))
        return values[:, :10], values[:, 10:]

    class Rows(Dataset[tuple[Tensor, Tensor]]):
        def __init__(self) -> None:
            self.inputs, self.targets = read()

        def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
            return self.inputs[indices], self.targets[indices]

    class Numbers(LightningDataModule):
        def setup(self, stage: str) -> None:  # noqa: ARG002
            self.rows = Rows()
            self.count = len(self.rows.targets) * 8 // 10

        def train_dataloader(self) -> Any:
            return batch_loader(self.rows, Batches(self.count, 64, self.trainer, shuffled(self.count)))

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))

    def ours() -> None:
        quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        trainer = Trainer(max_steps=1, accelerator="cpu", enable_checkpointing=False, **quiet)
        trainer.fit(Regressor(network()), Numbers())

    def theirs() -> None:
        inputs, targets = read()
        train = torch.randperm(len(targets))[: len(targets) * 8 // 10]
        mean, std = targets[train].mean(), targets[train].std()
        net = network()
        optimizer = torch.optim.AdamW(net.parameters())
        nn.functional.mse_loss(net(inputs[train[:64]]), (targets[train[:64]] - mean) / std).backward()
        optimizer.step()

    return measured(ours if is_ours else theirs)


def main() -> None:
    options = parse(__doc__)
    count = 20_000 if options.quick else 1_000_000
    rows = []
    for kind, make, start, end in (
        ("texts", make_table, start_texts, "batch"),
        ("numbers", make_numbers, start_numbers, "step"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table.csv"
            make(path, count)
            megabytes = os.path.getsize(path) / 1e6
            found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}

            def seconds(is_ours: bool, run: Any, path: str, found: dict[bool, list[tuple[float, float]]]) -> float:
                found[is_ours].append(in_own_process(run, is_ours, path)())  # type: ignore[arg-type]
                return found[is_ours][-1][0]

            sides = [partial(seconds, is_ours, start, str(path), found) for is_ours in (True, False)]
            ours, theirs = alternate(*sides, options.pairs)
        memory = [[mb for _, mb in found[is_ours][-len(ours) :]] for is_ours in (True, False)]
        other = "pandas and a plain loop"
        what = f"table of {kind}, {megabytes:,.0f} MB"
        rows += [
            Row(f"{what}: time to the first {end}", "s", ours, other, theirs, "ratio at most 1"),
            Row(f"{what}: memory", "MB", memory[0], other, memory[1], "at most twice the file"),
        ]
    show(rows, options.results)


if __name__ == "__main__":
    main()
