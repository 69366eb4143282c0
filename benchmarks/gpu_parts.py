"""The parts of `gpu.py`: each measures one thing and returns its values."""

import asyncio
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import serving
import torch
from table import ROOT, has_domain
from torch.nn import functional as F

sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
# By DataModule: a source that needs no download.
SOURCES = {
    "MNISTDataModule": "sample",
    "CaptionDataModule": "sample",
    "SpokenCaptionDataModule": "sample",
    "DigitScenesDataModule": "sample",
    "SpokenWordsDataModule": "synthetic",
    "TextDataModule": "python_reference",
    "LabelledTextDataModule": "language_names",
}
Values = dict[str, Any]


def keep(options: Any, values: Values) -> None:
    """Write the values of a part, also while it runs: they remain if it is stopped."""
    if options.values:
        (temporary := options.values.with_suffix(".tmp")).write_text(json.dumps(values), encoding="utf-8")
        temporary.replace(options.values)


def train(options: Any, *words: str, prepare: Callable[[Any], None] = lambda _: None) -> tuple[Any, Values]:
    """Run src.train in this process, after `prepare` with its data; returns its program and `metrics.json`."""
    from src.engine.cli.cli import StarterCLI

    with tempfile.TemporaryDirectory() as folder:
        root = f"--trainer.default_root_dir={folder}"
        cli = StarterCLI([*words, f"--accelerator={options.accelerator}", "--quiet", root], time.perf_counter())
        prepare(cli.datamodule)
        cli.run()
        path = Path(folder).glob("*/version_0/metrics.json")
        return cli, json.loads(next(path).read_text(encoding="utf-8"))


def command(*words: str) -> float:
    """Seconds of a command of this project in its own process."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}: {done.stderr[-500:]}")
    return time.perf_counter() - start


def digits(options: Any) -> list[str]:
    """The words for the data of MNIST."""
    return [f"--data.data_dir={Path(options.data_dir).resolve()}"] if options.data_dir else ["--data.source=sample"]


def alternate(options: Any, ours: Callable[[], float], theirs: Callable[[], float], name: str) -> Values:
    """Medians and ratios of both, A B A B ...; the first pair does not count, unless it is the only one."""
    measured: list[tuple[float, float]] = []
    found: Values = {}
    for _ in range(options.pairs + (options.pairs > 1)):
        measured.append((ours(), theirs()))
        print(f"  ours {measured[-1][0]:,.0f}, {name} {measured[-1][1]:,.0f} per second", flush=True)
        counted = measured[1:] or measured
        ratios = [a / b for a, b in counted]
        first, second = (statistics.median(values) for values in zip(*counted, strict=True))
        found = {"ours": first, name: second, "ratio": statistics.median(ratios), "ratios": ratios}
        keep(options, found)
    return found


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def plain_steps(net: torch.nn.Module, batches: Any, steps: int, device: str, optimizer: Any) -> float:
    """Batches per second of a plain loop in bfloat16, after three steps that do not count."""
    for step in range(-3, steps):
        if step == 0:
            synchronize(device)
            start = time.perf_counter()
        inputs, targets = (one.to(device, non_blocking=True) for one in batches(step))
        with torch.autocast(device, torch.bfloat16):
            loss = F.cross_entropy(net(inputs).flatten(0, -2), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    synchronize(device)
    return steps / (time.perf_counter() - start)


def default(options: Any) -> Values:
    """The default recipe as a whole process."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*digits(options), f"--accelerator={options.accelerator}", f"--trainer.default_root_dir={folder}"]
        words += ["--max_epochs=1", "--trainer.limit_train_batches=5"] if options.quick else []
        whole = command("-m", "src.train", *words)
        found = json.loads((Path(folder) / "default" / "version_0" / "metrics.json").read_text(encoding="utf-8"))
    return {"test/acc": found["test/acc"], "train_seconds": found["train_seconds"], "process_seconds": whole}


def images(options: Any, resident: bool = False) -> Values:
    """Training the CNN, in images per second, and a plain loop; both with the digits in memory or on the device."""
    from src.vision.cnn import CNN
    from src.vision.mnist import MEAN, STD, MNISTDataModule

    steps = 3 if options.quick else 400
    words = ["fit", *digits(options), "--model.net=CNN", "--max_epochs=1", f"--trainer.log_every_n_steps={steps}"]
    words += ["--data.max_shift=0", "--data.max_rotation=0", "--data.max_scale=0", "--trainer.limit_val_batches=1"]
    words += ["--data.device_resident=true"] if resident else []
    data = MNISTDataModule(**({"data_dir": options.data_dir} if options.data_dir else {"source": "sample"}))
    data.prepare_data()
    data.setup("fit")
    pixels, targets = data.train_set.images, data.train_set.targets
    if resident:
        pixels, targets = pixels.to(options.device), targets.to(options.device)
    pinned = options.device == "cuda" and not resident

    def batches(_: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(len(targets), (128,), device=targets.device)
        batch = ((pixels[rows].float() / 255 - MEAN) / STD).unsqueeze(1), targets[rows]
        return (batch[0].pin_memory(), batch[1].pin_memory()) if pinned else batch

    def plain() -> float:
        net = CNN().to(options.device, memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
        return 128 * plain_steps(net, batches, steps, options.device, optimizer)

    def repeat(data: Any) -> None:
        """One epoch for both log steps: the second gives the speed since the first, and the device is idle at both."""
        data.prepare_data()
        data.setup("fit")
        rows = torch.arange(2 * steps * 128) % len(data.train_set)
        data.train_set.images, data.train_set.targets = data.train_set.images[rows], data.train_set.targets[rows]

    def ours() -> float:
        return float(train(options, *words, prepare=repeat)[1]["speed/samples_per_second"])

    return alternate(options, ours, plain, "plain loop, data on the device" if resident else "plain loop")


def gpt(options: Any) -> Values:
    """Training a GPT with 124 million weights, context 1,024, compiled, in tokens per second, with a plain loop."""
    from src.text.gpt import GPT

    sizes = {
        "d_model": 768,
        "num_heads": 12,
        "num_layers": 12,
        "vocab_size": 50_304,
        "block_size": 1024,
        "conv_size": 0,
    }
    if options.quick:
        sizes = {"d_model": 32, "num_heads": 2, "num_layers": 2, "vocab_size": 256, "block_size": 64, "conv_size": 0}
    batch, steps, length = (4, 3, 64) if options.quick else (16, 40, 1024)
    words = ["fit", "--config=configs/text/shakespeare_gpt.yaml", f"--data.block_size={length}"]
    words += [f"--model.net.{name}={value}" for name, value in sizes.items()]
    words += ["--model.net.tie_weights=true", f"--data.batch_size={batch}", f"--trainer.max_steps={2 * steps}"]
    words += [f"--trainer.val_check_interval={2 * steps}", "--trainer.limit_val_batches=1", "--optimizer=AdamW"]
    words += ["--optimizer.lr=3e-4", "--optimizer.fused=true", "--lr_scheduler=null", "--trainer.callbacks=null"]
    words += [f"--trainer.log_every_n_steps={steps}", *([] if options.quick else ["--compile"])]
    words += ["--data.source=python_reference", "--trainer.enable_checkpointing=false"]
    tokens = torch.randint(sizes["vocab_size"], (batch, length + 1)).to(options.device)
    weights = 0

    def plain() -> float:
        nonlocal weights
        net = GPT(**sizes, tie_weights=True).to(options.device)
        weights = sum(one.numel() for one in net.parameters())
        if not options.quick:
            net.compile(dynamic=False)  # one size; our smaller warm-up for validation would make it compile for any
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-4, fused=True)
        both = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()  # as ours
        return batch * length * plain_steps(net, lambda _: both, steps, options.device, optimizer)

    def repeat(data: Any) -> None:
        """One epoch of whole batches for both log steps, as in `images`."""
        data.prepare_data()
        data.setup("fit")
        data.train_set.tokens = np.resize(data.train_set.tokens, 2 * steps * batch * length)

    def ours() -> float:
        return float(train(options, *words, prepare=repeat)[1]["speed/tokens_per_second"])

    found = alternate(options, ours, plain, "plain loop")
    from src.engine.tensorboard.throughput import peak_flops

    peak = peak_flops(torch.device(options.device), torch.bfloat16) if options.device == "cuda" else None
    # 6 operations per weight and token, and attention (Chowdhery et al. 2022).
    per_token = 6 * weights + 12 * sizes["num_layers"] * sizes["d_model"] * length
    return {**found, "weights": weights, "mfu": peak and found["ours"] * per_token / peak}


def waits(options: Any) -> Values:
    """How often the host waits for the device in the steps between two log steps, with digits and with text."""
    from lightning.pytorch import Callback

    from src.engine.cli.cli import StarterCLI

    every = 3 if options.quick else 50

    class Watch(Callback):
        """Counts waits from the step after a log step until the step before the next one."""

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if options.device == "cuda":
                is_between = 2 * every < trainer.global_step < 3 * every - 1
                torch.cuda.set_sync_debug_mode("warn" if is_between else "default")

    def count(*words: str) -> Values:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            lengths = [f"--trainer.max_steps={3 * every}", f"--trainer.log_every_n_steps={every}"]
            lengths += ["--trainer.max_epochs=-1", "--trainer.limit_val_batches=1"]
            root = f"--trainer.default_root_dir={folder}"
            words = ("fit", *words, *lengths, f"--accelerator={options.accelerator}", root, "--quiet")
            cli = StarterCLI([*words], time.perf_counter())
            cli.trainer.callbacks.insert(0, Watch())
            cli.run()
            # Not the warning that this mode is a prototype.
            found = [one for one in caught if "called a synchroniz" in str(one.message)]
        where = sorted({f"{Path(one.filename).name}:{one.lineno}" for one in found})
        return {"waits": len(found), "steps": every - 2, "where": where}

    # The sample has few digits: all steps in one epoch.
    size = [] if options.data_dir else ["--data.batch_size=16"]
    values = {"digits": count(*digits(options), *size, "--trainer.check_val_every_n_epoch=1000")}
    keep(options, values)
    if has_domain("text"):
        values["text"] = count("--config=configs/text/shakespeare_gpt_fast.yaml", "--data.source=python_reference")
    return values


def memory(options: Any) -> Values:
    """Peak memory of a training step in GiB, and what docs/scaling.md says."""
    import scaling

    size = scaling.Size("tiny", 2, 32, 2, 256, 64) if options.quick else scaling.SIZES[0]
    net = scaling.network(size, size.num_layers).to(options.device)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    tokens = torch.zeros(size.sequences, size.block_size + 1, dtype=torch.int64, device=options.device)
    rate = plain_steps(net, lambda _: (tokens[:, :-1], tokens[:, 1:]), 2, options.device, optimizer)
    peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else math.nan
    expected = scaling.memory(size, "ddp", 1) / scaling.GIB
    return {
        "peak": peak / scaling.GIB,
        "docs/scaling.md": expected,
        "ratio": peak / scaling.GIB / expected,
        "rate": rate,
    }


def fsdp2(options: Any) -> Values:
    """A GPT with FSDP2 on one device."""
    steps = 2 if options.quick else 20
    words = ["fit", "--config=configs/text/shakespeare_gpt_fast.yaml", "--config=configs/strategy/fsdp2.yaml"]
    words += ["--devices=1", f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"]
    words += ["--trainer.limit_val_batches=2", "--data.source=python_reference"]
    _, found = train(options, *words)
    return {"val/loss": found["val/loss"], "samples_per_second": found.get("speed/samples_per_second")}


def resume(options: Any) -> Values:
    """A run that is killed and resumed, compared bit by bit with an undisturbed one."""
    import kill

    words = ["--data.source=sample", f"--accelerator={options.accelerator}", "--trainer.deterministic=true"]
    words += [f"--max_epochs={1 if options.quick else 8}", "--trainer.log_every_n_steps=1", "--save_every_n_steps=5"]
    words += ["--trainer.enable_progress_bar=false"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with kill.start(words, root / "whole") as run:
            kill.finish(run)
        with kill.start(words, root / "killed") as run:
            if not kill.kill_at_random(run, root / "killed", random.Random(1)):  # a fifth of a second: early
                raise RuntimeError("the run had ended before it was killed: nothing was resumed")
        with kill.start([*words, "--ckpt_path=auto"], root / "killed") as run:
            kill.finish(run)
        runs = [next((root / name).glob("*/version_0")) for name in ("whole", "killed")]
        found = kill.differences(*runs)
    if found:
        raise RuntimeError(f"{len(found)} values differ after resuming: {found[:5]}")
    return {"differences": 0}


def deploy(options: Any) -> Values:
    """Seconds of src.predict as a whole process, images per second without its start, and answers of src.serve."""
    from PIL import Image

    from src.vision.mnist import MNISTDataModule

    data = MNISTDataModule(source="sample")
    data.prepare_data()
    data.setup("fit")
    few, many = (10, 20) if options.quick else (2_000, 16_000)
    pixels = data.train_set.images[:few]
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        path = serving.train_fast_recipe(folder, options.quick)
        for number, image in enumerate(pixels):
            Image.fromarray(image.numpy()).save(f"{folder}/{number}.png")
        for count in (few, many):
            (pictures := Path(folder) / f"{count} images").mkdir()
            for number in range(count):
                (pictures / f"{number}.png").hardlink_to(f"{folder}/{number % few}.png")
            words = ["-m", "src.predict", "--ckpt_path", path, str(pictures), "--accelerator", options.accelerator]
            seconds[count] = command(*words, "--output", f"{folder}/{count}.csv")
        found = {"predict, images": many, "predict, process_seconds": seconds[many]}
        found["predict, images/s without start"] = (many - few) / (seconds[many] - seconds[few])
        keep(options, found)
        (port,) = serving.free_ports(1)
        serve = ["-m", "src.serve", "--ckpt_path", path, "--port", str(port), "--accelerator", options.accelerator]
        server = serving.Server([sys.executable, *serve], port, Path(folder) / "log")
        try:
            bodies = [json.dumps(image.tolist()).encode() for image in pixels[:64]]
            seen = asyncio.run(serving.load(port, bodies, [], 1 if options.quick else 8))
        finally:
            server.stop()
    if seen["errors"]:
        raise RuntimeError(f"{seen['errors']} of {len(seen['latencies'])} answers of the service are errors")
    return {**found, "serve, answers/s": seen["rate"]}


def recipes(options: Any) -> Values:
    """Every recipe with --fast_dev_run, in one process."""
    from PIL import Image

    from src.engine.cli.cli import StarterCLI
    from src.engine.cli.config import is_recipe, load_config
    from src.engine.system.errors import InputError, cause_of

    paths = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "configs").rglob("*.yaml"))]
    found = [path for path in paths if "/tune/" not in path and is_recipe(load_config(path)[1])]
    results: Values = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("red", "blue"):
            (place := Path(folder) / name).mkdir()
            for number in range(12):
                Image.new("RGB", (64, 64), name).save(place / f"{number}.png")
        given = {name: [f"--data.source={source}"] for name, source in SOURCES.items()}
        given["ImageFolderDataModule"] = [f"--data.path={folder}"]
        for path in found[:1] if options.quick else found:
            data = str(load_config(path)[1]["data"]["class_path"]).rpartition(".")[2]
            words = [f"--config={path}", *given.get(data, []), "--fast_dev_run", "--quiet"]
            start = time.perf_counter()
            try:
                StarterCLI([*words, f"--accelerator={options.accelerator}"], start).run()
                results[path] = round(time.perf_counter() - start, 1)
            except Exception as error:
                cause = cause_of(error)
                kind = "needs" if isinstance(cause, InputError) and "--data" in str(cause) else "failed"
                results[path] = f"{kind}: {' '.join(str(cause).split())[:200]}"
            print(f"  {path}: {results[path]}", flush=True)
            keep(options, results)
    if failed := [path for path, one in results.items() if str(one).startswith("failed")]:
        raise RuntimeError(f"{len(failed)} recipes failed: {', '.join(f'{path} ({results[path]})' for path in failed)}")
    return results
