"""Runs this project on one NVIDIA GPU, in at most nine minutes: accuracy, speed, memory, resuming, all recipes.

Each part is a process of its own: if one fails, this is reported and the next one starts. Nothing is downloaded:
without --data_dir the samples are used. The last line is a JSON object with all values. Exit code 1: a part failed; 2:
there is no GPU.

    python benchmarks/gpu.py [--data_dir FOLDER] [--only gpt resume] [--pairs 3] [--quick]
"""

import asyncio
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import serving
import torch
from table import DATA_DIR, ROOT, describe, has_domain, parse
from torch.nn import functional as F

sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
SECONDS = 540.0  # for all parts
Values = dict[str, Any]


def train(options: Any, *words: str) -> tuple[Any, Values]:
    """Run src.train in this process; returns its program and `metrics.json`."""
    from src.engine.cli.cli import StarterCLI

    with tempfile.TemporaryDirectory() as folder:
        root = f"--trainer.default_root_dir={folder}"
        cli = StarterCLI([*words, f"--accelerator={options.accelerator}", "--quiet", root], time.perf_counter())
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
    return [f"--data.data_dir={options.data_dir}"] if options.data_dir else ["--data.source=sample"]


def alternate(ours: Callable[[], float], theirs: Callable[[], float], pairs: int, name: str) -> Values:
    """Medians and ratios of both, A B A B ...; the first pair does not count, unless it is the only one."""
    measured = []
    for _ in range(pairs + (pairs > 1)):
        measured.append((ours(), theirs()))
        print(f"  ours {measured[-1][0]:,.0f}, {name} {measured[-1][1]:,.0f} per second", flush=True)
    measured = measured[-pairs:]
    ratios = [a / b for a, b in measured]
    first, second = (statistics.median(values) for values in zip(*measured, strict=True))
    return {"ours": first, name: second, "ratio": statistics.median(ratios), "ratios": ratios}


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
    """Training the CNN, in images per second, and a plain loop with the digits in memory or on the device."""
    from src.vision.cnn import CNN
    from src.vision.mnist import MEAN, STD, MNISTDataModule

    steps = 3 if options.quick else 400
    words = ["fit", *digits(options), "--model.net=CNN", f"--max_epochs={1 if options.quick else 5}"]
    words += ["--data.max_shift=0", "--data.max_rotation=0", "--data.max_scale=0", "--trainer.limit_val_batches=1"]
    words += ["--trainer.limit_train_batches=3"] if options.quick else []
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

    ours = lambda: float(train(options, *words)[1]["samples_per_second"])  # noqa: E731
    return alternate(ours, plain, options.pairs, "plain loop, data on the device" if resident else "plain loop")


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
    words += ["--model.net.tie_weights=true", f"--data.batch_size={batch}", f"--trainer.max_steps={steps}"]
    words += [f"--trainer.val_check_interval={steps}", "--trainer.limit_val_batches=1", "--optimizer=AdamW"]
    words += ["--optimizer.lr=3e-4", "--optimizer.fused=true", "--lr_scheduler=null", "--trainer.callbacks=null"]
    words += [f"--trainer.log_every_n_steps={min(20, steps)}", *([] if options.quick else ["--compile"])]
    words += [f"--data.data_dir={options.data_dir}"] if options.data_dir else ["--data.source=python_reference"]
    tokens = torch.randint(sizes["vocab_size"], (batch, length + 1)).to(options.device)
    weights = 0

    def plain() -> float:
        nonlocal weights
        net = GPT(**sizes, tie_weights=True).to(options.device)
        weights = sum(one.numel() for one in net.parameters())
        if not options.quick:
            net.compile()
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-4, fused=True)
        both = tokens[:, :-1], tokens[:, 1:]
        return batch * length * plain_steps(net, lambda _: both, steps, options.device, optimizer)

    ours = lambda: length * float(train(options, *words)[1]["samples_per_second"])  # noqa: E731
    found = alternate(ours, plain, options.pairs, "plain loop")
    from src.engine.tensorboard.throughput import peak_flops

    peak = peak_flops(torch.device(options.device), torch.bfloat16) if options.device == "cuda" else None
    # 6 operations per weight and token, and attention (Chowdhery et al. 2022).
    per_token = 6 * weights + 12 * sizes["num_layers"] * sizes["d_model"] * length
    return {**found, "weights": weights, "mfu": peak and found["ours"] * per_token / peak}


def waits(options: Any) -> Values:
    """How often the host waits for the device in the steps between two log steps."""
    from lightning.pytorch import Callback

    from src.engine.cli.cli import StarterCLI

    every, found = (5 if options.quick else 50), []

    class Watch(Callback):
        """Counts waits from the step after a log step until the step before the next one."""

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if options.device == "cuda":
                is_between = 2 * every < trainer.global_step < 3 * every - 1
                torch.cuda.set_sync_debug_mode("warn" if is_between else "default")

    words = ["fit", *digits(options), f"--accelerator={options.accelerator}", f"--trainer.max_steps={3 * every}"]
    words += [f"--trainer.log_every_n_steps={every}", "--trainer.max_epochs=-1", "--trainer.limit_val_batches=1"]
    words += [] if options.data_dir else ["--data.batch_size=16"]  # the sample has few digits: all steps in one epoch
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        words += ["--trainer.check_val_every_n_epoch=1000", f"--trainer.default_root_dir={folder}", "--quiet"]
        cli = StarterCLI(words, time.perf_counter())
        cli.trainer.callbacks.insert(0, Watch())
        cli.run()
        # Not the warning that this mode is a prototype.
        found = [
            f"{Path(one.filename).name}:{one.lineno}" for one in caught if "called a synchroniz" in str(one.message)
        ]
    return {"waits": len(found), "steps": every - 2, "where": sorted(set(found))}


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
    return {"val/loss": found["val/loss"], "samples_per_second": found.get("samples_per_second")}


def resume(options: Any) -> Values:
    """A run that is killed and resumed, compared bit by bit with an undisturbed one."""
    import kill

    words = ["--data.source=sample", f"--accelerator={options.accelerator}", "--trainer.deterministic=true"]
    words += [f"--max_epochs={1 if options.quick else 8}", "--trainer.log_every_n_steps=1", "--save_every_n_steps=5"]
    words += ["--trainer.enable_progress_bar=false", *(["--trainer.limit_train_batches=20"] if options.quick else [])]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        kill.finish(kill.start(words, root / "whole"))
        was_killed = kill.kill_at_random(kill.start([*words], root / "killed"), root / "killed", random.Random(0))
        if was_killed:
            kill.finish(kill.start([*words, "--ckpt_path=auto"], root / "killed"))
        runs = [next((root / name).glob("*/version_0")) for name in ("whole", "killed")]
        found = kill.differences(*runs)
    if found:
        raise RuntimeError(f"{len(found)} values differ after resuming: {found[:5]}")
    return {"killed": was_killed, "differences": 0}


def deploy(options: Any) -> Values:
    """Images per second of src.predict as a whole process and within it, and answers per second of src.serve."""
    from PIL import Image

    from src.vision.mnist import MNISTDataModule

    data = MNISTDataModule(source="sample")
    data.prepare_data()
    data.setup("fit")
    count = 20 if options.quick else 2000
    pixels = data.train_set.images[:count]
    with tempfile.TemporaryDirectory() as folder:
        path = serving.train_fast_recipe(folder, options.quick)
        (pictures := Path(folder) / "images").mkdir()
        for number, image in enumerate(pixels):
            Image.fromarray(image.numpy()).save(pictures / f"{number}.png")
        words = ["-m", "src.predict", "--ckpt_path", path, str(pictures), "--accelerator", options.accelerator]
        predicting = command(*words, "--output", f"{folder}/out.csv")
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
    return {"predict, images": len(pixels), "predict, process_seconds": predicting, "serve, answers/s": seen["rate"]}


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
        given = {"ImageFolderDataModule": [f"--data.path={folder}"], "MNISTDataModule": ["--data.source=sample"]}
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
    if failed := [path for path, one in results.items() if str(one).startswith("failed")]:
        raise RuntimeError(f"{len(failed)} recipes failed: {', '.join(f'{path} ({results[path]})' for path in failed)}")
    return results


# Function, longest time in seconds, and the domain it needs.
PARTS: dict[str, tuple[Callable[[Any], Values], int, str]] = {
    "default": (default, 90, "vision"),
    "gpt": (gpt, 150, "text"),
    "images": (images, 90, "vision"),
    "resident": (partial(images, resident=True), 80, "vision"),
    "waits": (waits, 40, "vision"),
    "memory": (memory, 40, "text"),
    "fsdp2": (fsdp2, 50, "text"),
    "resume": (resume, 90, "vision"),
    "deploy": (deploy, 80, "vision"),
    "recipes": (recipes, 150, "vision"),
}


def run_part(name: str, seconds: float | None) -> Values:
    """Run a part in its own process, with the same options; returns its values or what went wrong."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "values.json"
        words = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--part", name, "--values", str(file)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(words, env=environment, start_new_session=True)
        try:
            code = process.wait(seconds)
            problem = f"exit code {code}, see above" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"stopped after {seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
                process.wait()
        values = json.loads(file.read_text(encoding="utf-8")) if file.exists() and not problem else {}
    return {**values, **({"failed": problem} if problem else {}), "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    known = [name for name, (_, _, domain) in PARTS.items() if has_domain(domain)]
    options = parse(
        __doc__,
        DATA_DIR,
        ("--only", {"nargs": "+", "choices": known, "default": known, "metavar": "PART", "help": ", ".join(known)}),
        ("--cpu", {"action": "store_true", "help": "try this script on a CPU, with --quick"}),
        ("--part", {"choices": known, "help": "run this part in this process"}),
        ("--values", {"type": Path, "help": "file for the values of --part"}),
    )
    options.pairs = min(options.pairs, 3)
    options.quick = options.quick or options.cpu
    options.device, options.accelerator = ("cpu", "cpu") if options.cpu else ("cuda", "gpu")
    if not options.cpu and not torch.cuda.is_available():
        print("error: this machine has no NVIDIA GPU that torch can use: --cpu tries the script", file=sys.stderr)
        sys.exit(2)
    if options.part:
        options.values.write_text(json.dumps(PARTS[options.part][0](options)), encoding="utf-8")
        return
    print(json.dumps(describe()), flush=True)
    end = time.perf_counter() + SECONDS
    found: dict[str, Values] = {}
    for name in options.only:
        left = end - time.perf_counter()
        print(f"{name} ...", flush=True)
        limit = None if options.cpu else min(PARTS[name][1], left)
        found[name] = run_part(name, limit) if options.cpu or left > 0 else {"failed": "no time left"}
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    print(json.dumps({"machine": describe(), "parts": found}))
    sys.exit(1 if any("failed" in values for values in found.values()) else 0)


if __name__ == "__main__":
    main()
