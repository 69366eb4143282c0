"""Time and memory from a table with a million texts to the first batch: this project, and pandas with a plain loop.

The plain loop reads the table, draws a random split and pads the first batch of bytes; ours also checks labels, empty
texts and copies in several parts, and sorts texts by length. Each run has its own process; its memory is the peak of
RssAnon, less that of the imports.

    python benchmarks/table_start.py [--pairs 9] [--quick]
"""

import os
import random
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

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


def anonymous() -> float:
    """Memory of this process that the system cannot free, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def start(is_ours: bool, path: str) -> tuple[float, float]:
    """Seconds and MB until the first batch is there."""
    import numpy as np
    import pandas as pd
    import torch
    from pyarrow import csv  # noqa: F401

    from src.text.labelled_text import LabelledTextDataModule

    base = anonymous()
    peak = [base]

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    begun = time.perf_counter()
    if is_ours:
        data = LabelledTextDataModule(path)
        data.setup("fit")
        next(iter(data.train_dataloader()))
    else:
        table = pd.read_csv(path)
        targets = torch.from_numpy(table.label.astype("category").cat.codes.to_numpy().astype(np.int64))
        train, _, _ = torch.randperm(len(table)).tensor_split([len(table) * 8 // 10, len(table) * 9 // 10])
        texts = [torch.tensor(list(text.encode()[:256])) for text in table.text.iloc[train[:32].numpy()]]
        _ = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True), targets[train[:32]]
    return time.perf_counter() - begun, peak[0] - base


def main() -> None:
    options = parse(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        make_table(path, 100_000 if options.quick else 1_000_000)
        megabytes = os.path.getsize(path) / 1e6
        measured: dict[bool, list[tuple[float, float]]] = {True: [], False: []}

        def seconds(is_ours: bool) -> float:
            measured[is_ours].append(in_own_process(start, is_ours, str(path))())  # type: ignore[arg-type]
            return measured[is_ours][-1][0]

        ours, theirs = alternate(partial(seconds, True), partial(seconds, False), min(3, options.pairs))
    memory = [[mb for _, mb in measured[is_ours][-len(ours) :]] for is_ours in (True, False)]
    other = "pandas and a plain loop"
    what = f"table of texts, {megabytes:,.0f} MB"
    rows = [
        Row(f"{what}: time to the first batch", "s", ours, other, theirs, "ratio at most 1"),
        Row(f"{what}: memory", "MB", memory[0], other, memory[1], "at most twice the file"),
    ]
    show(rows, options.results)


if __name__ == "__main__":
    main()
