"""Tokens per second of text generation: with a cache and without, beside `transformers`, and of a service.

With and without a cache, an untrained GPT of block_size 512 generates the same 512 tokens, greedily. GPT-2 of the same
size generates as many with `generate` of `transformers`, with its cache. The service gets requests from eight clients
at once and from one. All alternate, A B A B ..., after one pair that does not count.

    python benchmarks/generation.py [--pairs 9] [--quick] [--tokens 512]
"""

import http.client
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from gpt2 import GPT2, SIZES
from serving import Server, free_ports
from table import Row, alternate, parse, show
from training import train_quietly

from src.text.gpt import GPT
from src.text.language_model import LanguageModel

CLIENTS = 8


def tokens_per_second(task: LanguageModel, count: int, use_cache: bool) -> tuple[float, list[int]]:
    start = time.perf_counter()
    text = list(task.generate(torch.tensor([10]), count, temperature=0, use_cache=use_cache))
    return count / (time.perf_counter() - start), text


def transformers_speed(net: GPT2, count: int) -> float:
    prompt = torch.tensor([[10]])
    start = time.perf_counter()
    with torch.inference_mode():
        found = net.net.generate(prompt, max_new_tokens=count, do_sample=False, use_cache=True, pad_token_id=0)
    assert found.shape[1] == count + 1
    return count / (time.perf_counter() - start)


def served_speed(port: int, clients: int, count: int) -> float:
    """Tokens per second of some clients together, each with one request."""

    def ask(seed: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        connection.request("POST", "/generate", json.dumps({"prompt": "A", "max_new_tokens": count, "seed": seed}))
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.read()

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients)))
    return clients * count / (time.perf_counter() - start)


def served(pairs: int, count: int) -> Row:
    """The row of the service."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", "--config=configs/text/shakespeare_gpt.yaml", "--data.source=python_reference"]
        words += ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"]
        train_quietly([*words, "--accelerator=cpu"], folder)
        path = next(Path(folder).glob("*/version_0/checkpoints/last.ckpt"))
        (port,) = free_ports(1)
        command = [sys.executable, "-m", "src.serve", "--ckpt_path", str(path), "--port", str(port)]
        server = Server([*command, "--accelerator", "cpu", "--timeout", "600"], port, Path(folder) / "log")
        try:
            speeds = [partial(served_speed, port, clients, count) for clients in (CLIENTS, 1)]
            ours, theirs = alternate(speeds[0], speeds[1], pairs)
        finally:
            server.stop()
    return Row(f"generation, {CLIENTS} clients of the service", "tokens/s", ours, "one", theirs, "ratio at least 3")


def main() -> None:
    options = parse(__doc__, ("--tokens", {"type": int, "default": 512}))
    count = 32 if options.quick else options.tokens
    torch.manual_seed(0)
    task = LanguageModel(GPT(block_size=512, **SIZES))
    for parameter in task.parameters():  # the blocks of a new GPT are the identity: all tokens would be alike
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    texts: list[list[int]] = []

    def speed(use_cache: bool) -> float:
        value, text = tokens_per_second(task, count, use_cache)
        texts.append(text)
        return value

    ours, theirs = alternate(partial(speed, True), partial(speed, False), options.pairs)
    assert all(text == texts[0] for text in texts)
    rows = [Row("generation, cached", "tokens/s", ours, "without a cache", theirs, "ratio at least 5")]
    net = GPT2(block_size=count + 1).eval()
    ours, theirs = alternate(partial(speed, True), partial(transformers_speed, net, count), options.pairs)
    rows.append(Row("generation, beside GPT-2", "tokens/s", ours, "transformers", theirs, "ratio at least 1.5"))
    rows.append(served(options.pairs, min(count, 200)))
    show(rows, options.results)


if __name__ == "__main__":
    main()
