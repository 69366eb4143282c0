"""What the tests of deployment share: a service as a process of its own, a browser, and a command's one line."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image
from screenshots import chromium, free_port

from src import ROOT
from tests.toy import ToyData, ToyImages

TOKEN = "a secret"
TRUSTED = "tests"  # the package of the toys, which a checkpoint may name only if the user says so


def of(checkpoint: str) -> list[str]:
    """The options that name a checkpoint of the tests."""
    return ["--ckpt_path", checkpoint, "--trust", TRUSTED]


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
class Client:
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

    def generate(self, body: Any) -> Answer:
        return self.ask("POST", "/generate", json.dumps(body).encode())

    def stream(self, path: str, body: Any) -> http.client.HTTPResponse:
        """An answer whose body has not been read yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST", path, json.dumps(body))
        return connection.getresponse()


@dataclass
class Service(Client):
    process: "subprocess.Popen[bytes]"

    def memory(self) -> int:
        found = re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1])


@contextlib.contextmanager
def service(checkpoint: str, *words: str, **env: str) -> Iterator[Service]:
    port = free_port()
    command = [sys.executable, "-m", "src.serve", *of(checkpoint), "--port", str(port), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
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
        yield Service(port, process)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def raw(port: int, data: bytes, reads: bool = True) -> bytes:
    """Send bytes, then read the beginning of what comes, or hang up at once."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as one, contextlib.suppress(ConnectionError):
        one.sendall(data)
        return one.recv(4096) if reads else b""
    return b""


@contextlib.contextmanager
def browser(*options: str, refuses: bool = False) -> Iterator[Any]:
    """A page of a real browser without network beyond this machine; `refuses`: the service answers with an error."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    if path is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *options])
        page = opened.new_page(viewport={"width": 820, "height": 520})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        yield page
        opened.close()
        assert not [one for one in problems if not (refuses and "the server responded with a status of 4" in one)]


class Bar(NamedTuple):
    probability: float
    width: float  # pixels


def bars_of(page: Any) -> dict[str, Bar]:
    """The bars of the labels in the service's page."""
    page.wait_for_selector(".best")
    page.wait_for_timeout(500)  # answers that are on their way, and bars that grow
    read = """rows => rows.map(row => [
        row.dataset.label, Number(row.dataset.probability), row.querySelector(".bar").getBoundingClientRect().width])"""
    # In one call: an answer that arrives meanwhile replaces the rows.
    return {label: Bar(*numbers) for label, *numbers in page.eval_on_selector_all(".row", read)}


def one_line(
    main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    """The last line on stderr of a command that must end with exit code 2 and without a traceback."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return shown.strip().splitlines()[-1]


def toy_samples(count: int) -> tuple[list[Image.Image], list[str]]:
    """Images of the toy data's test part, and their labels."""
    found = ToyImages(count, seed=2)
    images = [Image.fromarray(pixels[0].numpy()) for pixels in found.pixels]
    return images, [ToyData.labels[target] for target in found.targets]
