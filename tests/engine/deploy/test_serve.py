"""The service, as its users and its abusers meet it: a process of its own, and HTTP."""

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from src.engine.deploy.inference import Inference
from src.engine.system.errors import InputError
from src.serve import serve
from src.vision.mnist import MNISTDataModule
from tests.conftest import program
from tests.engine.deploy.served import TOKEN, Answer, Service, free_port, service


@pytest.fixture(scope="module")
def digit_service(digits: str) -> Iterator[Service]:
    with service(digits, "--max_body_mb", "0.2", "--timeout", "20") as found:
        yield found


@pytest.fixture(scope="module")
def samples() -> list[tuple[Image.Image, bytes]]:
    """Digits as images and as PNG."""
    data = MNISTDataModule(source="sample")
    data.setup("test")
    found = []
    for pixels in data.test_set.images[:64]:
        image, buffer = Image.fromarray(pixels.numpy()), io.BytesIO()
        image.save(buffer, "PNG")
        found.append((image, buffer.getvalue()))
    return found


@pytest.fixture(scope="module")
def offline(digits: str, samples: list[tuple[Image.Image, bytes]]) -> list[list[float]]:
    """What predicting without a server gives for each."""
    inference = Inference(digits)
    with torch.no_grad():
        values: list[list[float]] = inference.probabilities(
            inference.prepare([image for image, _ in samples])[0]
        ).tolist()
    return values


def is_right(answer: Answer, expected: list[float]) -> bool:
    if answer.status != 200:
        return False
    values = list(answer.json["probabilities"].values())
    near = all(abs(one - other) < 0.03 for one, other in zip(values, expected, strict=True))  # bfloat16, where there is
    return near and answer.json["label"] == list(answer.json["probabilities"])[values.index(max(values))]


def test_an_image_is_classified_however_it_is_sent(
    digit_service: Service, samples: list[tuple[Image.Image, bytes]], offline: list[list[float]]
) -> None:
    image, png = samples[5]
    jpeg = io.BytesIO()
    image.resize((280, 280)).save(jpeg, "JPEG", quality=95)
    form = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    multipart = form + png + b"\r\n--x--\r\n"
    rows = [[image.getpixel((x, y)) for x in range(28)] for y in range(28)]
    flat = [pixel for row in rows for pixel in row]
    assert is_right(digit_service.predict(png), offline[5])
    assert is_right(digit_service.predict(png, Content_Type="image/png"), offline[5])
    assert is_right(digit_service.predict(multipart, Content_Type="multipart/form-data; boundary=x"), offline[5])
    assert is_right(digit_service.predict(rows, Content_Type="application/json"), offline[5])
    assert is_right(digit_service.predict(flat), offline[5])
    assert is_right(digit_service.predict({"pixels": rows}), offline[5])
    large = digit_service.predict(jpeg.getvalue()).json
    assert large["label"] == digit_service.predict(png).json["label"]
    inverted = digit_service.predict([[255 - value for value in row] for row in rows]).json
    assert inverted["note"].startswith("inverted")


def test_health_and_the_page_answer(digit_service: Service) -> None:
    assert digit_service.ask("GET", "/health").status == 200
    page = digit_service.ask("GET", "/")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    text = page.body.decode()
    assert '"labels": ["0", "1"' in text
    assert not re.findall(r"(?:src|href)=\"(?!data:)|https?://", text)  # it works without internet


BAD = {
    "nothing": (b"", {}, 422),
    "garbage": (os.urandom(999), {}, 422),
    "half an image": (b"", {}, 422),
    "broken JSON": (b"[[1, 2", {}, 422),
    "deep JSON": (b"[" * 100_000, {}, 422),
    "words": (b'["a", "b"]', {}, 422),
    "ragged rows": (b"[[1, 2], [3]]", {}, 422),
    "too bright": (json.dumps([[300] * 28] * 28).encode(), {}, 422),
    "infinite": (b"[[1e999, 1], [1, 1]]", {}, 422),
    "no number": (b"[[NaN, 1], [1, 1]]", {}, 422),
    "null": (b"[[null, 1], [1, 1]]", {}, 422),
    "an object": (b'{"picture": 1}', {}, 422),
    "a bad form": (b"--y", {"Content_Type": "multipart/form-data; boundary=x"}, 422),
    "a form without boundary": (b"--x", {"Content_Type": "multipart/form-data"}, 422),
    "an empty form": (b"--x--\r\n", {"Content_Type": "multipart/form-data; boundary=x"}, 422),
    "too large": (b"0" * 300_000, {}, 413),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_refused_in_one_line(
    digit_service: Service, samples: list[tuple[Image.Image, bytes]], name: str
) -> None:
    body, headers, status = BAD[name]
    if name == "half an image":
        body = samples[0][1][: len(samples[0][1]) // 2]
    answer = digit_service.predict(body, **headers)
    assert answer.status == status
    assert answer.json.keys() == {"detail"}
    assert "Traceback" not in answer.json["detail"]


def test_an_image_that_is_small_as_a_file_and_huge_in_memory_is_refused(digit_service: Service) -> None:
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 200_000
    before = digit_service.memory()
    assert "too many pixels" in digit_service.predict(bomb.getvalue()).json["detail"]
    assert digit_service.memory() < before + 50_000  # KB


def test_paths_and_methods_that_are_none_are_refused(digit_service: Service) -> None:
    assert digit_service.ask("GET", "/predict").status == 405
    assert digit_service.ask("POST", "/generate", b"{}").status == 404
    assert digit_service.ask("GET", "/nothing").status == 404


def raw(port: int, data: bytes, wait: float | None) -> bytes:
    """Send bytes, then hang up, or after a while read what comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
        one.sendall(data)
        if wait is None:
            return b""
        time.sleep(wait)
        with contextlib.suppress(OSError):
            return one.recv(4096)
    return b""


@pytest.mark.slow
def test_others_are_served_while_some_misbehave(
    digit_service: Service, samples: list[tuple[Image.Image, bytes]], offline: list[list[float]]
) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n"
    chunked = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    bad = [
        (b"\x00\xff garbage\r\n\r\n", 0.1),
        (head + b"half of it", None),  # hangs up in the middle
        (head + b"half of it", 3.0),  # stays, and sends nothing more
        (head[:20], 3.0),
        (chunked + b"zz\r\nno length", 0.1),
        (chunked + b"30D40\r\n" + b"0" * 200_000 + b"\r\n" + b"30D40\r\n" + b"0" * 200_000 + b"\r\n0\r\n\r\n", 0.1),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000, 0.1),
    ]

    def good(number: int) -> bool:
        return is_right(digit_service.predict(samples[number % 64][1]), offline[number % 64])

    def whole_request_then_gone(number: int) -> bytes:
        body = samples[number][1]
        return raw(
            digit_service.port,
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
            None,
        )

    with ThreadPoolExecutor(64) as pool:
        worse = [pool.submit(raw, digit_service.port, *one) for one in bad for _ in range(3)]
        gone = [pool.submit(whole_request_then_gone, number) for number in range(20)]
        assert all(pool.map(good, range(400)))
        answers = [one.result() for one in worse]
    assert all(not one.exception() for one in gone)
    assert any(b" 413 " in answer for answer in answers)
    assert any(b" 400 " in answer for answer in answers)
    assert digit_service.ask("GET", "/health").status == 200


def test_many_clients_get_right_answers_and_memory_stays(
    digit_service: Service, samples: list[tuple[Image.Image, bytes]], offline: list[list[float]]
) -> None:
    def client(first: int) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", digit_service.port, timeout=30)
        right = True
        for number in range(first, first + 20):
            connection.request("POST", "/predict", samples[number % 64][1])
            answer = connection.getresponse()
            right &= is_right(Answer(answer.status, answer.read(), answer.headers), offline[number % 64])
        return right

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(client, range(192)))  # what is allocated once is
        before = digit_service.memory()
        assert all(pool.map(client, range(384)))
    # 8 KB a request that stays would be 60 MB.
    assert digit_service.memory() < before + 30_000  # KB


@pytest.mark.slow
def test_texts_are_classified_with_a_token(sentiments: str) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with service(sentiments, "--token", TOKEN) as found:
        refused = found.predict({"text": "a fine film"})
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert found.predict({"text": "a fine film"}, Authorization="Bearer wrong").status == 401
        assert found.predict({"text": "a fine film"}, **bearer).json["label"] == "good"
        assert found.predict("an awful film", **bearer).json["label"] == "bad"
        assert found.ask("GET", "/health").status == found.ask("GET", "/").status == 200
        assert TOKEN not in found.ask("GET", "/").body.decode()
        for bad in ({"text": ""}, {"text": 1}, {"texts": ["a"]}, [1], {"text": "\ud800"}):
            assert found.predict(bad, **bearer).status == 422


def test_a_language_model_streams(writer: str) -> None:
    with service(writer) as found:
        ask = {"prompt": "To be", "max_new_tokens": 60, "seed": 1}
        body = json.dumps(ask).encode()
        first = found.ask("POST", "/generate", body)
        assert first.status == 200
        assert first.headers["content-type"] == "text/plain; charset=utf-8"
        assert 20 <= len(first.body.decode()) <= 60
        assert found.ask("POST", "/generate", body).body == first.body
        # It comes in pieces: the first is there long before the last.
        connection = http.client.HTTPConnection("127.0.0.1", found.port)
        connection.request("POST", "/generate", json.dumps({**ask, "max_new_tokens": 2000}))
        answer = connection.getresponse()
        start = time.monotonic()
        assert answer.read(1)
        begun = time.monotonic() - start
        answer.read()
        assert begun < 0.5 * (time.monotonic() - start)
        # Whoever hangs up leaves the others alone.
        for _ in range(4):
            raw(
                found.port,
                b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
                None,
            )
        assert found.ask("POST", "/generate", body).body == first.body
        bad: list[Any] = [
            {},
            {"prompt": ""},
            {"prompt": 1},
            {**ask, "max_new_tokens": 10**6},
            {**ask, "temperature": -1},
        ]
        bad += [{**ask, "top_p": 7}, {**ask, "seed": -1}, {**ask, "tokens": 1}, [ask], {**ask, "max_new_tokens": "9"}]
        for wrong in bad:
            refused = found.ask("POST", "/generate", json.dumps(wrong).encode())
            assert (refused.status, list(refused.json)) == (422, ["detail"]), wrong


@pytest.mark.slow
def test_told_to_end_it_answers_what_it_has_and_takes_nothing_new(writer: str) -> None:
    with service(writer) as found:
        connection = http.client.HTTPConnection("127.0.0.1", found.port, timeout=30)
        connection.request("POST", "/generate", json.dumps({"prompt": "To be", "max_new_tokens": 300}))
        answer = connection.getresponse()
        assert answer.read(1)
        found.process.terminate()
        start = time.monotonic()
        time.sleep(0.5)
        with pytest.raises(OSError, match="refused"):
            found.ask("GET", "/health")
        assert len(answer.read()) > 80  # the rest of it
        found.process.wait(10 - (time.monotonic() - start))
        assert found.process.returncode == 0


@pytest.mark.slow
def test_a_request_that_never_ends_does_not_hold_it_up(digits: str) -> None:
    with service(digits) as found:
        with socket.create_connection(("127.0.0.1", found.port)) as one:
            one.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nhalf")
            time.sleep(0.5)
            found.process.terminate()
            found.process.wait(10)
        assert not Path(f"/proc/{found.process.pid}/task").exists()


def test_when_it_is_killed_nothing_of_it_stays(digits: str) -> None:
    with service(digits) as found:
        port = found.port
        found.process.kill()
        found.process.wait(5)
        words = f"--port\0{port}".encode()
        left = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                left += [path] if words in path.read_bytes() else []
        assert not left
        with pytest.raises(OSError, match="refused"):
            found.ask("GET", "/health")


CANNOT = [
    (("--port", "80"), r"--port 80 is out of range"),
    (("--host", "example.org"), r"--host: invalid choice"),
    (("--max_body_mb", "0"), r"--max_body_mb 0\.0 is too small"),
    (("--timeout", "inf"), r"--timeout inf is not finite: give at least 0\.1"),
    (("--batch_timeout", "nan"), r"--batch_timeout nan is not finite: give at least 0\.0"),
    (("--token", ""), r"--token is empty"),
    (("--ckpt_path", "no.ckpt"), r"--ckpt_path no\.ckpt: no such file"),
    (("--accelerator", "gpu"), r"--accelerator gpu: this machine has none"),
    (("--prot", "8000"), r"--prot: no such option.*--port"),
]


@pytest.mark.parametrize(("words", "message"), CANNOT)
def test_what_cannot_work_is_one_error(
    digits: str, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvicorn.Server.run", lambda *_: pytest.fail("it serves"))
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    try:
        with pytest.raises(InputError, match=message):
            serve(["--ckpt_path", digits, "--port", str(free_port()), *words])
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


@pytest.mark.slow
@pytest.mark.parametrize(("words", "message"), CANNOT[::4])
def test_what_cannot_work_ends_the_program_with_one_line(digits: str, words: tuple[str, ...], message: str) -> None:
    done = program("--ckpt_path", digits, "--port", str(free_port()), *words, module="src.serve")
    assert done.returncode == 2
    assert re.search(message, done.stderr.strip().splitlines()[-1])
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_one_line(digits: str) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        done = program("--ckpt_path", digits, "--port", str(port), module="src.serve")
    assert done.returncode == 2
    assert f"--port {port} of 127.0.0.1 cannot be had" in done.stderr
    assert "Traceback" not in done.stderr
