"""Serves a checkpoint to 64 clients: requests per second, latency, memory; checks answers with offline predictions.

python benchmarks/serving.py [--ckpt_path CHECKPOINT] [--seconds 60] [--pairs 9] [--quick]

A text classifier is compared with its bare network in batches of 64, an image classifier with an empty LitServe
endpoint that gets the same requests; they alternate `--pairs` times. A long load of `--seconds` follows.
"""

import asyncio
import atexit
import gc
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from table import Row, alternate, parse, show

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = 64
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

    def __init__(self, command: list[str], port: int) -> None:
        self.port = port
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        atexit.register(self.stop)
        end = time.monotonic() + 120
        while not self._is_ready():
            if time.monotonic() > end or self.process.poll() is not None:
                sys.exit(f"server did not start: {' '.join(command)}")
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
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    number = first
    while time.perf_counter() < end:
        body = bodies[number % len(bodies)]
        start = time.perf_counter()
        writer.write((head % len(body)).encode() + body)
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


def train_fast_recipe(folder: str) -> str:
    """Train the fast recipe on sample digits; returns the checkpoint."""
    command = [
        sys.executable,
        "-m",
        "src.train",
        "fit",
        "--config=configs/vision/mnist_fast.yaml",
        "--data.source=sample",
    ]
    command += ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={folder}"]
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
        show(measure(options, options.ckpt_path or train_fast_recipe(folder), Path(folder)), options.results)


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
    server = Server(command, ports[0])
    other: Server | None = None
    if is_image:
        script = folder / "empty.py"
        script.write_text(EMPTY.replace("PORT", str(ports[1])))
        other = Server([sys.executable, str(script)], ports[1])
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
