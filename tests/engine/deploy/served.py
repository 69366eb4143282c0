"""A service as a process of its own, for the tests that ask it."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from src import ROOT

TOKEN = "a secret"


@dataclass
class Answer:
    status: int
    body: bytes
    headers: Any

    @property
    def json(self) -> Any:
        assert self.body.count(b"\n") == 0
        return json.loads(self.body)


@dataclass
class Service:
    process: "subprocess.Popen[bytes]"
    port: int

    def ask(self, method: str, path: str, body: bytes = b"", timeout: float = 30, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request(
            method, path, body or None, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        found = Answer(answer.status, answer.read(), answer.headers)
        connection.close()
        return found

    def predict(self, body: Any, **headers: str) -> Answer:
        return self.ask("POST", "/predict", body if isinstance(body, bytes) else json.dumps(body).encode(), **headers)

    def memory(self) -> int:
        found = re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1])


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def service(checkpoint: str, *words: str) -> Iterator[Service]:
    port = free_port()
    command = [sys.executable, "-m", "src.serve", "--ckpt_path", checkpoint, "--port", str(port), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line.decode())
        if "Serving http://127.0.0.1" in lines[-1]:
            break
    else:
        pytest.fail("".join(lines))
    try:
        yield Service(process, port)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
