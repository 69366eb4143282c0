"""Serves a checkpoint to 64 clients: requests per second, latency, memory; checks answers with offline predictions.

python benchmarks/serving.py [--ckpt_path CHECKPOINT] [--seconds 60] [--pairs 9] [--quick]

A text classifier is compared with its bare network in batches of 64, an image classifier with an empty LitServe
endpoint that gets the same requests; they alternate `--pairs` times. A long load of `--seconds` follows, then misuse,
while one client goes on and compares its answers: random requests, images of many pixels, and idle connections.
"""

import asyncio
import atexit
import gc
import http.client
import json
import os
import random
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from requests_of_strangers import image_file, random_request, request
from table import Row, alternate, parse, show

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = 64
FILES = 1024  # `ulimit -n` of the server
RANDOM_REQUESTS, LARGE_IMAGES, IDLE_CONNECTIONS = 4000, 40, 1100
TOLERANCE = 0.02  # of a probability: bfloat16 rounding depends on the other inputs in the batch
EMPTY = """
import litserve

class Empty(litserve.LitAPI):
    def setup(self, device): pass
    def decode_request(self, request): return request
    def predict(self, x): return x
    def encode_response(self, output): return {"label": "0"}

if __name__ == "__main__":
    litserve.LitServer(Empty(), accelerator="cpu").run(
        host="127.0.0.1", port=PORT, log_level="warning", generate_client_file=False, access_log=False)
"""


class Server:
    """A server in its own process group; can be paused while another is measured."""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self.port = port
        self.log = log
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=file
            )
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))  # before it asks for its limit
        atexit.register(self.stop)
        end = time.monotonic() + 300  # other programs may run
        while not self._is_ready():
            if time.monotonic() > end or self.process.poll() is not None:
                sys.exit(f"server did not start: {' '.join(command)}: {log.read_text()[-2000:]}")
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def stop(self) -> None:
        """Kill the process group; does nothing if called again."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def tree(self) -> list[int]:
        """IDs of the process and its descendants."""
        found = [self.process.pid]
        for pid in found:
            for path in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(child) for child in path.read_text().split()]
        return found

    def signal(self, signum: int) -> None:
        """Send a signal to all processes of the server."""
        for pid in self.tree():
            os.kill(pid, signum)

    def memory(self) -> float:
        """Memory of all processes in MB, shared pages counted once."""
        texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.tree()]
        return (
            sum(int(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("Pss:")) / 1024
        )


async def _client(
    port: int, bodies: list[bytes], expected: list[Any], first: int, end: float, seen: dict[str, Any]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = first
    while time.perf_counter() < end:
        body = bodies[number % len(bodies)]
        start = time.perf_counter()
        writer.write(request(body))
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        content = await reader.readexactly(length)
        seen["latencies"].append(time.perf_counter() - start)
        if not answer.startswith(b"HTTP/1.1 200"):
            seen["errors"] += 1
        elif expected and not _same(json.loads(content), expected[number % len(bodies)]):
            seen["wrong"] += 1
        number += CLIENTS
    writer.close()


def _same(answer: dict[str, Any], expected: list[float]) -> bool:
    return all(
        abs(one - other) < TOLERANCE for one, other in zip(answer["probabilities"].values(), expected, strict=True)
    )


async def load(port: int, bodies: list[bytes], expected: list[Any], seconds: float) -> dict[str, Any]:
    """Latencies, errors and rate of 64 clients that each send one request after the other."""
    seen: dict[str, Any] = {"latencies": [], "errors": 0, "wrong": 0}
    start = time.perf_counter()
    end = start + seconds
    await asyncio.gather(*(_client(port, bodies, expected, i, end, seen) for i in range(CLIENTS)))
    seen["rate"] = len(seen["latencies"]) / (time.perf_counter() - start)
    return seen


async def exchange(port: int, data: bytes, seconds: float) -> tuple[int, float]:
    """The status of the answer to some bytes (0: none) and the seconds until it came; then hangs up."""
    start = time.perf_counter()
    status = 0
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(data)
                line = await reader.readline()
                status = int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0
            finally:
                writer.close()
    except (TimeoutError, OSError):
        pass
    return status, time.perf_counter() - start


async def misuse(server: Server, good: bytes, expected: list[float], share: float) -> list[Row]:
    """Rows of what the server does while it is misused; ends the program if an answer is wrong."""
    rng, port = random.Random(0), server.port
    healths: list[float] = []
    highest = 0.0

    async def watch() -> None:
        nonlocal highest
        while True:
            status, seconds = await exchange(port, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 30)
            healths.append(1000 * (seconds if status == 200 else 30))
            seen: dict[str, Any] = {"latencies": [], "errors": 0, "wrong": 0}
            await _client(port, [good], [expected], 0, time.perf_counter() + 0.01, seen)
            if seen["errors"] or seen["wrong"]:
                sys.exit("a good request among bad ones got no answer, or a wrong one")
            highest = max(highest, await asyncio.to_thread(server.memory))
            await asyncio.sleep(0.05)

    async def count(requests: list[bytes], seconds: float, at_once: int) -> dict[int, int]:
        places = asyncio.Semaphore(at_once)

        async def one(data: bytes) -> int:
            async with places:
                return (await exchange(port, data, seconds))[0]

        found = await asyncio.gather(*(one(data) for data in requests))
        return {status: found.count(status) for status in sorted(set(found))}

    async def measured(what: str, work: Any) -> list[Row]:
        nonlocal highest
        healths.clear()
        highest = before = server.memory()
        statuses = await work
        if watcher.done():
            await watcher
        print(f"{what}: statuses {statuses} (0: no answer)", file=sys.stderr)
        if server.process.poll() is not None or 500 in statuses:
            sys.exit(f"the server has failed: {server.log.read_text()[-2000:]}")
        return [
            Row(f"serving: {what}, slowest /health", "ms", [max(healths)], "median", [statistics.median(healths)]),
            Row(f"serving: {what}, highest memory", "MB", [highest], "before", [before]),
        ]

    async def idle(connections: int) -> dict[int, int]:
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(connections)]
        for number, (_, writer) in enumerate(opened):
            writer.write(b"POST /predict HTTP/1.1\r\nHost:" if number % 2 else b"")
        statuses = await count([request(good)] * 100, 10, 10)
        for _, writer in opened:
            writer.close()
        return statuses

    watcher = asyncio.create_task(watch())
    number = int(share * RANDOM_REQUESTS)
    rows = await measured(
        f"{number:,} random requests", count([random_request(rng, good) for _ in range(number)], 2, CLIENTS)
    )
    number = int(share * LARGE_IMAGES)
    for mode, name in (("1", "black and white"), ("RGBA", "colour")):
        image = request(image_file("PNG", mode, (7000, 7000)), "image/png")
        rows += await measured(
            f"{number} {name} images of 49 megapixels, {len(image) // 1000} kB", count([image] * number, 60, number)
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * IDLE_CONNECTIONS)), hard))
    number = int(share * IDLE_CONNECTIONS)
    rows += await measured(f"{number:,} idle connections", idle(number))
    watcher.cancel()
    if long := [line for line in server.log.read_text().splitlines() if not line.startswith(("error:", "Serving"))][1:]:
        sys.exit(f"the log has lines that do not stand alone: {long[:3]}")
    return rows


def train_fast_recipe(folder: str, quick: bool) -> str:
    """Train the fast recipe on sample digits, for 40 steps if `quick`; returns the checkpoint."""
    command = [
        sys.executable,
        "-m",
        "src.train",
        "fit",
        "--config=configs/vision/mnist_fast.yaml",
        "--data.source=sample",
    ]
    command += ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={folder}"]
    command += ["--trainer.max_steps=40", "--trainer.val_check_interval=40"] if quick else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return f"{folder}/mnist_fast/version_0/checkpoints/last.ckpt"


def main() -> None:
    ckpt_path = ("--ckpt_path", {"help": "default: the fast recipe, trained on sample digits"})
    seconds = ("--seconds", {"type": float, "default": 60.0, "help": "of the long load; default: 60"})
    pair_seconds = ("--pair_seconds", {"type": float, "default": 5.0, "help": "of each load of a pair; default: 5"})
    options = parse(__doc__, ckpt_path, seconds, pair_seconds)
    if options.quick:
        options.seconds, options.pair_seconds = 3.0, 1.0
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        path = options.ckpt_path or train_fast_recipe(folder, options.quick)
        show(measure(options, path, Path(folder)), options.results)


def measure(options: Any, path: str, folder: Path) -> list[Row]:
    """The rows for a checkpoint."""
    import torch

    from src.engine.deploy.formats import Reference
    from src.engine.deploy.inference import Inference
    from src.engine.system.hardware import choose_precision

    inference = Inference(path)
    reference = Reference(inference)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=choose_precision("cpu")[0] == "bf16-mixed")

    @torch.inference_mode()
    def offline(inputs: Any) -> list[list[float]]:
        with autocast:
            return inference.predictions(inputs)["probabilities"].tolist()

    is_image = inference.kind == "image"
    if is_image:
        pixels = torch.cat([batch[0][0] for batch in reference.samples(1024)])
        inputs = pixels[:, 0].tolist() if pixels.shape[1] == 1 else pixels.permute(0, 2, 3, 1).tolist()
        bodies = [json.dumps(one).encode() for one in inputs]
        expected = [row for chunk in pixels.split(64) for row in offline((chunk,))]
    else:
        data = inference.data
        rows = data._load_source() if data.paths["train"] is None else data._load_tables()
        texts = [text for text, _ in rows["val"]][:1024]
        bodies = [json.dumps({"text": text}).encode() for text in texts]
        expected = [row for i in range(0, len(texts), 64) for row in offline(inference.prepare(texts[i : i + 64])[0])]

    ports = free_ports(2)
    command = [sys.executable, "-m", "src.serve", "--ckpt_path", str(inference.path), "--port", str(ports[0])]
    server = Server(command, ports[0], folder / "serve.log")
    other: Server | None = None
    if is_image:
        script = folder / "empty.py"
        script.write_text(EMPTY.replace("PORT", str(ports[1])))
        other = Server([sys.executable, str(script)], ports[1], folder / "empty.log")
        other.signal(signal.SIGSTOP)

    def server_rate() -> float:
        return float(asyncio.run(load(ports[0], bodies, expected, options.pair_seconds))["rate"])

    def other_rate() -> float:
        server.signal(signal.SIGSTOP)
        try:
            if other is None:
                count, start = 0, time.perf_counter()
                while time.perf_counter() < start + options.pair_seconds:
                    first = count % len(texts)
                    count += len(offline(inference.prepare((texts + texts)[first : first + 64])[0]))
                return count / (time.perf_counter() - start)
            other.signal(signal.SIGCONT)
            rate = float(asyncio.run(load(ports[1], bodies, [], options.pair_seconds))["rate"])
            other.signal(signal.SIGSTOP)
            return rate
        finally:
            server.signal(signal.SIGCONT)

    gc.freeze()  # a garbage collection in the clients would count as latency of the server
    try:
        ours, theirs = alternate(server_rate, other_rate, options.pairs)
        before = server.memory()
        seen = asyncio.run(load(ports[0], bodies, expected, options.seconds))
        after = server.memory()
        misused = asyncio.run(misuse(server, bodies[0], expected[0], 0.1 if options.quick else 1.0)) if is_image else []
    finally:
        gc.unfreeze()
        for one in (server, other):
            if one is not None:
                one.stop()
    if seen["errors"] or seen["wrong"]:
        sys.exit(f"{seen['errors']} errors and {seen['wrong']} wrong answers in {len(seen['latencies'])} requests")
    latencies = sorted(1000 * one for one in seen["latencies"])
    p50, p99 = (latencies[int(share * len(latencies))] for share in (0.5, 0.99))
    name = "an empty LitServe endpoint" if is_image else "the bare network, batches of 64"
    target = "ratio at least 0.8" if is_image else "ratio at least 0.7"
    what = f"serving: {'images' if is_image else 'texts'} to {CLIENTS} clients"
    return [
        Row(what, "answers/s", ours, name, theirs, target),
        Row(f"{what}, 99th percentile of latency", "ms", [p99], "median", [p50]),
        Row(f"{what}, memory after {options.seconds:.0f} s", "MB", [after], "before", [before]),
        *misused,
    ]


def free_ports(count: int) -> list[int]:
    """Unused ports."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    found = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return found


if __name__ == "__main__":
    main()
