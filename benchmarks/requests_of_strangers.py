"""Requests to a service: right, random and damaged ones, and images of many pixels."""

import io
import json
import random
from typing import Any


def request(body: bytes, kind: str = "application/json") -> bytes:
    """A request for a prediction."""
    head = "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return (head % (kind, len(body))).encode() + body


def random_request(rng: random.Random, good: bytes) -> bytes:
    """A request with a malformed, false, huge or cut head or body; `good` is the body of a good one."""

    def mostly(usual: Any, *others: Any) -> Any:
        return usual if rng.random() < 0.9 else rng.choice(others)

    odd_value = rng.choice([None, 1, [], {}, "\ud800", [[1e308]], [["1"]]])
    bodies = [
        good,
        rng.randbytes(rng.randrange(5000)),
        b"[" * rng.randrange(100_000),
        b"[[" + b"9" * rng.randrange(9000) + b"]]",
        json.dumps({rng.choice(["pixels", "text", "x"]): odd_value}).encode(),
        b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + good + b"\r\n--x--\r\n",
        b"--x\r\n" * rng.randrange(2000),
        damaged(rng, image_file(rng.choice(["PNG", "JPEG"]), "L", (rng.randrange(1, 40), rng.randrange(1, 40)))),
        b"0" * rng.choice([10, 100_000, 11_000_000]),
    ]
    body = rng.choice(bodies)
    method = mostly("POST", "GET", "HEAD", "OPTIONS", "CONNECT", "PRI", "\xff", "post")
    path = mostly("/predict", "/generate", "/", "/health", "*", "//", "/%ff?%00", "http://x")
    kinds = [
        "image/png",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "text/plain; charset=utf-16",
        "\xe9",
    ]
    lines = [f"{method} {path} HTTP/{mostly('1.1', '1.0', '2.0', '9')}", "Host: 127.0.0.1"]
    lines += [f"Content-Type: {rng.choice(kinds)}", f"Content-Length: {len(body) + mostly(0, 5, -5)}"]
    for _ in range(mostly(0, 1, 3)):
        names = ["Content-Length", "Transfer-Encoding", "Expect", "Connection", "Upgrade", "Host", "Origin"]
        values = ["", "-1", "chunked", "100-continue", "h2c", "9" * 30, "evil.example", "\x00", "\xff\xfe", "a" * 9000]
        lines.append(f"{rng.choice(names)}: {rng.choice(values)}")
    data = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
    change = mostly("none", "damaged", "cut", "repeated")
    if change == "damaged":
        return damaged(rng, data)
    if change == "cut":
        return data[: rng.randrange(len(data))]
    return data * 3 if change == "repeated" and len(data) < 10_000 else data


def damaged(rng: random.Random, data: bytes) -> bytes:
    """The data with some bytes replaced."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 9)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def image_file(kind: str, mode: str, size: tuple[int, int]) -> bytes:
    """An image of one colour."""
    from PIL import Image

    file = io.BytesIO()
    Image.new(mode, size, 1 if mode == "1" else 200).save(file, kind, compress_level=9)
    return file.getvalue()
