"""Training speed of `python -m src.train` and of a plain PyTorch loop.

Both train the same network with the same optimizer, schedule, precision, memory format, batch size and augmentation on
data in memory, each run in its own process. Ours also logs, measures accuracy, validates, saves checkpoints and draws a
progress bar in a pseudo-terminal. Compared is the speed within the training epoch. What the command sets by itself is
part of it: freed memory is kept, which a loop would have to ask for (benchmarks/ablation.py: worth 1.09 and 1.18).
With --keep_memory the loop asks for it too.

    python benchmarks/overhead.py [--data_dir FOLDER] [--precision 32-true] [--keep_memory] [--pairs 9] [--quick]
"""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from table import DATA_DIR, Row, alternate, has_domain, parse, show
from torch import nn
from torch.nn import functional as F
from training import autocast, in_own_process, samples_per_second

from src.engine.system.hardware import keep_freed_memory
from src.engine.training.optim.groups import decay_groups
from src.engine.training.optim.muon import MuonWithAdamW

PLAIN = ("--model.net=CNN", "--data.max_shift=0", "--data.max_rotation=0", "--data.max_scale=0")


def plain_images(build: Callable[[], nn.Module], options: Any, steps: int, limits: tuple[float, ...]) -> float:
    """Images per second of a hand-written loop for the default recipe."""
    from src.vision.mnist import MEAN, STD, MNISTDataModule, distort

    digits = prepared(MNISTDataModule(data_dir=options.data_dir), options)
    images = ((digits.train_set.images.float() / 255 - MEAN) / STD).unsqueeze(1)
    targets = digits.train_set.targets
    steps = min(len(targets) // 128, steps)
    torch.manual_seed(0)
    net = build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=8e-3, weight_decay=2e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, steps)
    start = time.perf_counter()
    order = torch.randperm(len(targets))
    for step in range(steps):
        rows = order[step * 128 : (step + 1) * 128]
        batch = distort(images[rows], *limits) if any(limits) else images[rows]
        with autocast(options.precision):
            loss = F.cross_entropy(net(batch), targets[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return steps * 128 / (time.perf_counter() - start)


def plain_text(options: Any, steps: int) -> float:
    """Tokens per second of a hand-written loop for the GPT recipe."""
    from src.text.corpus import TextDataModule
    from src.text.gpt import GPT

    data = prepared(TextDataModule(data_dir=options.data_dir, block_size=256), options)
    torch.manual_seed(0)
    net = GPT(vocab_size=data.vocab_size, block_size=256, num_heads=2, conv_size=3)
    optimizer = MuonWithAdamW(decay_groups(net), lr=0.02, adamw_lr=0.01, momentum=0.9, ns_steps=3)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, steps, cycle_momentum=False)
    start = time.perf_counter()
    for _ in range(steps):
        tokens, targets = data.train_set.__getitems__(torch.randint(len(data.train_set), (8,)).tolist())
        with autocast(options.precision):
            loss = F.cross_entropy(net(tokens).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return steps * 8 * 256 / (time.perf_counter() - start)


def prepared(data: Any, options: Any) -> Any:
    """Set up the data of a plain loop, and remove a variable set by Lightning that slows down each step of Adam."""
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    if options.keep_memory:
        keep_freed_memory()
    data.prepare_data()
    data.setup("fit")
    return data


def tokens_per_second(words: list[str]) -> float:
    return 256 * samples_per_second(words)


def plain(options: Any, function: Callable[..., float], *args: Any) -> Callable[[], float]:
    """A plain loop in its own process; with --quick in this one, which saves the imports."""
    return partial(function, *args) if options.quick else in_own_process(function, *args)


def images(common: list[str], options: Any) -> list[Row]:
    """The rows for images."""
    from src.vision.cnn import CNN
    from src.vision.vgg import VGG

    steps = 10 if options.quick else 10_000  # limit; an epoch has 429
    epoch = [*common, "--max_epochs=1", f"--trainer.limit_train_batches={steps}", "--trainer.limit_val_batches=5"]
    rows = []
    for what, words, build, limits in (
        ("default recipe", (), partial(VGG, width=16, dropout=0.1), (1.0, 8.0, 0.08, 0.0)),
        ("CNN without augmentation", PLAIN, CNN, (0.0,) * 4),
    ):
        by_hand = plain(options, plain_images, build, options, steps, limits)
        ours, theirs = alternate(in_own_process(samples_per_second, [*epoch, *words]), by_hand, options.pairs)
        rows.append(Row(f"training: {what}", "images/s", ours, "plain loop", theirs, "ratio at least 0.97"))
    return rows


def text(common: list[str], options: Any) -> list[Row]:
    """The row for text."""
    steps = 2 if options.quick else 200
    words = [*common, "--config=configs/text/shakespeare_gpt.yaml", f"--trainer.max_steps={steps}"]
    words += [f"--trainer.val_check_interval={steps}", "--trainer.limit_val_batches=1"]
    by_hand = plain(options, plain_text, options, steps)
    ours, theirs = alternate(in_own_process(tokens_per_second, words), by_hand, options.pairs)
    return [Row("training: shakespeare_gpt", "tokens/s", ours, "plain loop", theirs, "ratio at least 0.97")]


def main() -> None:
    precision = ("--precision", {"help": "of both; default: what this CPU is chosen for", "choices": ["32-true"]})
    kept = ("--keep_memory", {"action": "store_true", "help": "let the plain loop keep freed memory too"})
    options = parse(__doc__, DATA_DIR, precision, kept)
    common = ["fit", "--accelerator=cpu"]
    common += [f"--data.data_dir={options.data_dir}"] if options.data_dir else []
    common += [f"--precision={options.precision}"] if options.precision else []
    rows = images(common, options) if has_domain("vision") else []
    rows += text(common, options) if has_domain("text") else []
    for row in rows:
        row.what += f", {options.precision}" if options.precision else ""
        row.other += " that keeps freed memory" if options.keep_memory else ""
    show(rows, options.results)


if __name__ == "__main__":
    main()
