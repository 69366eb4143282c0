"""The service, as its users and its abusers meet it: a process of its own, and HTTP."""

import asyncio
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request

from src import serve as command
from src.engine.deploy import requests
from src.engine.deploy.inference import Inference
from tests.engine.deploy.served import (
    TOKEN,
    TRUSTED,
    Answer,
    Service,
    free_port,
    of,
    one_line,
    raw,
    service,
    toy_samples,
)
from tests.engine.deploy.toys import HELD


@pytest.fixture(scope="module")
def samples() -> list[tuple[Image.Image, bytes]]:
    """Images, and the same as PNG."""
    found = []
    for image in toy_samples(64)[0]:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        found.append((image, buffer.getvalue()))
    return found


@pytest.fixture(scope="module")
def offline(toy_checkpoint: str, samples: list[tuple[Image.Image, bytes]]) -> list[list[float]]:
    """What predicting without a server gives for each."""
    inference = Inference(toy_checkpoint, trust=[TRUSTED])
    with torch.no_grad():
        predicted = inference.predictions(inference.prepare([image for image, _ in samples])[0])
    values: list[list[float]] = predicted["probabilities"].tolist()
    return values


def is_right(answer: Answer, expected: list[float]) -> bool:
    if answer.status != 200:
        return False
    values = list(answer.json["probabilities"].values())
    near = all(abs(one - other) < 0.03 for one, other in zip(values, expected, strict=True))  # bfloat16, where there is
    return near and answer.json["label"] == list(answer.json["probabilities"])[values.index(max(values))]


def test_an_image_is_classified_however_it_is_sent(
    image_service: Service, samples: list[tuple[Image.Image, bytes]], offline: list[list[float]]
) -> None:
    image, png = samples[5]
    jpeg = io.BytesIO()
    image.resize((80, 80), Image.Resampling.NEAREST).save(jpeg, "JPEG", quality=95)
    form = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    multipart = form + png + b"\r\n--x--\r\n"
    rows = [[image.getpixel((x, y)) for x in range(8)] for y in range(8)]
    flat = [pixel for row in rows for pixel in row]
    assert is_right(image_service.predict(png), offline[5])
    assert is_right(image_service.predict(png, Content_Type="image/png"), offline[5])
    assert is_right(image_service.predict(multipart, Content_Type="multipart/form-data; boundary=x"), offline[5])
    assert is_right(image_service.predict(rows, Content_Type="application/json"), offline[5])
    assert is_right(image_service.predict(flat), offline[5])
    assert is_right(image_service.predict({"pixels": rows}), offline[5])
    large = image_service.predict(jpeg.getvalue()).json
    assert large["label"] == image_service.predict(png).json["label"]
    assert large["note"] == "scaled"
    assert "note" not in image_service.predict(png).json


def test_health_and_the_page_answer(image_service: Service) -> None:
    assert image_service.ask("GET", "/health").status == 200
    page = image_service.ask("GET", "/")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    text = page.body.decode()
    assert '"draws": true' in text
    assert not re.findall(r"(?:src|href)=\"(?!data:)|https?://", text)  # it works without internet


BAD = {
    "nothing": (b"", {}, 422),
    "garbage": (os.urandom(999), {}, 422),
    "half an image": (b"", {}, 422),
    "broken JSON": (b"[[1, 2", {}, 422),
    "deep JSON": (b"[" * 100_000, {}, 422),
    "a flat list": (b"[1, 2, 3]", {}, 422),
    "words": (b'["a", "b"]', {}, 422),
    "ragged rows": (b"[[1, 2], [3]]", {}, 422),
    "too bright": (json.dumps([[300] * 8] * 8).encode(), {}, 422),
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
    image_service: Service, samples: list[tuple[Image.Image, bytes]], name: str
) -> None:
    body, headers, status = BAD[name]
    if name == "half an image":
        body = samples[0][1][: len(samples[0][1]) // 2]
    answer = image_service.predict(body, **headers)
    assert answer.status == status
    assert answer.json.keys() == {"detail"}
    assert "Traceback" not in answer.json["detail"]


def test_an_image_that_is_small_as_a_file_and_huge_in_memory_is_refused(image_service: Service) -> None:
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 200_000
    before = image_service.memory()
    assert "too many pixels" in image_service.predict(bomb.getvalue()).json["detail"]
    assert image_service.memory() < before + 50_000  # KB


def test_paths_and_methods_that_are_none_are_refused(image_service: Service) -> None:
    assert image_service.ask("GET", "/predict").status == 405
    assert image_service.ask("POST", "/generate", b"{}").status == 404
    assert image_service.ask("GET", "/nothing").status == 404


@pytest.mark.slow
def test_others_are_served_while_some_misbehave(
    image_service: Service, samples: list[tuple[Image.Image, bytes]], offline: list[list[float]]
) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n\r\n"
    chunked = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    large = b"30D40\r\n" + b"0" * 200_000 + b"\r\n"
    answered = [
        b"\x00\xff garbage\r\n\r\n",
        chunked + b"zz\r\nno length",
        chunked + 2 * large + b"0\r\n\r\n",
    ]
    stay = [head + b"half of it", head[:20], b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"A: b\r\n" * 20_000]

    def good(number: int) -> bool:
        return is_right(image_service.predict(samples[number % 64][1]), offline[number % 64])

    def whole_request(number: int) -> bytes:
        body = samples[number][1]
        return b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    leaves = [head + b"half of it"] * 3 + [whole_request(number) for number in range(20)]
    with ThreadPoolExecutor(64) as pool, contextlib.ExitStack() as stack:
        for data in 3 * stay:  # and send nothing more
            stack.enter_context(socket.create_connection(("127.0.0.1", image_service.port))).sendall(data)
        worse = [pool.submit(raw, image_service.port, data) for _ in range(3) for data in answered]
        gone = [pool.submit(raw, image_service.port, data, reads=False) for data in leaves]
        assert all(pool.map(good, range(200)))
        answers = [one.result() for one in worse]
    assert all(not one.exception() for one in gone)
    assert any(b" 413 " in answer for answer in answers)
    assert any(b" 400 " in answer for answer in answers)
    assert image_service.ask("GET", "/health").status == 200


def test_a_body_that_does_not_arrive_is_given_up(toy_checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing_comes() -> Any:
        await asyncio.Event().wait()

    async def read() -> None:
        async with asyncio.timeout(None) as deadline:
            await receive(Request({"type": "http", "headers": []}, nothing_comes), deadline, 30)

    monkeypatch.setattr(requests, "BODY_SECONDS", 0.01)
    receive = requests.RequestReader(Inference(toy_checkpoint, trust=[TRUSTED]), None, 1000)
    with pytest.raises(HTTPException, match="the body did not arrive") as refusal:
        asyncio.run(read())
    assert refusal.value.status_code == 408
    assert receive.held_bytes == 0


@pytest.mark.slow
def test_many_clients_get_right_answers_and_memory_stays(
    image_service: Service, samples: list[tuple[Image.Image, bytes]], offline: list[list[float]]
) -> None:
    def client(first: int) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", image_service.port, timeout=30)
        right = True
        for number in range(first, first + 20):
            connection.request("POST", "/predict", samples[number % 64][1])
            answer = connection.getresponse()
            right &= is_right(Answer(answer.status, answer.read(), answer.headers), offline[number % 64])
        return right

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(client, range(64)))  # what is allocated once is
        before = image_service.memory()
        assert all(pool.map(client, range(96)))
    # 8 KB a request that stays would be 15 MB.
    assert image_service.memory() < before + 10_000  # KB


def test_texts_are_classified_with_a_token(text_service: Service) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    refused = text_service.predict({"text": "a fine film"})
    assert refused.status == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert text_service.predict({"text": "a fine film"}, Authorization="Bearer wrong").status == 401
    assert text_service.predict({"text": "a fine film"}, **bearer).json["label"] == "good"
    assert text_service.predict("an awful film", **bearer).json["label"] == "bad"
    assert text_service.ask("GET", "/health").status == text_service.ask("GET", "/").status == 200
    assert TOKEN not in text_service.ask("GET", "/").body.decode()
    for bad in ({"text": ""}, {"text": 1}, {"texts": ["a"]}, [1], {"text": "\ud800"}):
        assert text_service.predict(bad, **bearer).status == 422


ASK = {"prompt": "to be", "max_new_tokens": 60, "seed": 1, "temperature": 5}


def test_a_writer_repeats_itself_for_a_seed(writer_service: Service) -> None:
    first = writer_service.generate(ASK)
    assert first.status == 200
    assert first.headers["content-type"] == "text/plain; charset=utf-8"
    assert len(first.body) == 60
    assert writer_service.generate(ASK).body == first.body
    assert writer_service.generate({**ASK, "seed": 2}).body != first.body
    assert writer_service.generate({**ASK, "seed": None}).status == 200


def test_a_text_comes_while_it_is_written(writer_service: Service, held: Path) -> None:
    held.touch()
    answer = writer_service.stream("/generate", ASK)
    begun = answer.read(1)
    held.unlink()
    assert begun + answer.read() == writer_service.generate(ASK).body


def test_who_hangs_up_leaves_the_other_readers_alone(writer_service: Service) -> None:
    body = json.dumps(ASK).encode()
    first = writer_service.generate(ASK).body
    for _ in range(4):
        raw(
            writer_service.port,
            b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
            reads=False,
        )
    assert writer_service.generate(ASK).body == first


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"prompt": ""},
        {"prompt": 1},
        {"prompt": "\ud800"},
        {**ASK, "max_new_tokens": 10**6},
        {**ASK, "max_new_tokens": "9"},
        {**ASK, "temperature": -1},
        {**ASK, "temperature": 10**400},
        {**ASK, "top_p": "1"},
        {**ASK, "seed": -1},
        {**ASK, "tokens": 1},
        [ASK],
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(writer_service: Service, wrong: Any) -> None:
    refused = writer_service.generate(wrong)
    assert (refused.status, list(refused.json)) == (422, ["detail"])


def is_refused(one: Service) -> bool:
    """Whether nobody listens; otherwise, after a short while."""
    try:
        one.ask("GET", "/health")
    except ConnectionRefusedError:
        return True
    except (OSError, http.client.HTTPException):
        pass
    time.sleep(0.02)
    return False


def test_told_to_end_it_answers_what_it_has_and_takes_nothing_new(toy_writer: str, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.touch()
    with service(toy_writer, **{HELD: str(held)}) as found:
        answer = found.stream("/generate", {**ASK, "max_new_tokens": 300})
        assert answer.read(1)
        found.process.terminate()
        assert any(is_refused(found) for _ in range(200))
        held.unlink()
        assert len(answer.read()) == 299  # the rest of it
        found.process.wait(10)
        assert found.process.returncode == 0


@pytest.mark.slow
def test_a_request_that_never_ends_does_not_hold_it_up(toy_checkpoint: str) -> None:
    with service(toy_checkpoint) as found:
        with socket.create_connection(("127.0.0.1", found.port)) as one:
            one.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n\r\nhalf")
            time.sleep(0.5)
            found.process.terminate()
            found.process.wait(10)
        assert found.process.returncode == 0


def test_a_computation_that_never_ends_does_not_hold_it_up(toy_writer: str, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.touch()
    with service(toy_writer, **{HELD: str(held)}) as found:
        assert found.stream("/generate", ASK).read(1)
        found.process.terminate()
        found.process.wait(30)
        assert found.process.returncode == 0


@pytest.mark.slow
def test_when_it_is_killed_nothing_of_it_stays(toy_checkpoint: str) -> None:
    with service(toy_checkpoint, REAL_INTERPRETER="1") as found:
        port = found.port
        found.process.kill()
        found.process.wait(5)
        words = f"--port\0{port}".encode()
        left = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                left += [path] if words in path.read_bytes() else []
        assert not left
        assert is_refused(found)


CANNOT = [
    (("--port", "80"), r"--port 80 is out of range"),
    (("--host", "example.org"), r"--host: invalid choice"),
    (("--max_body_mb", "0"), r"--max_body_mb 0\.0 is too small"),
    (("--max_body_mb", "200.5"), r"--max_body_mb 200\.5 is too large: give at most 200"),
    (("--timeout", "inf"), r"--timeout inf is not finite: give at least 0\.1"),
    (("--batch_timeout", "nan"), r"--batch_timeout nan is not finite: give at least 0\.0"),
    (("--token", ""), r"--token: give printable ASCII that neither begins nor ends with a space, or leave it out"),
    (("--token", "secret\n"), r"--token: give printable ASCII"),
    (("--token", "ключ"), r"--token: give printable ASCII"),
    (("--ckpt_path", "no.ckpt"), r"--ckpt_path no\.ckpt: no such file"),
    (("--accelerator", "gpu"), r"--accelerator gpu: this machine has none"),
    (("--labels", "a", "b"), r"Classifier has fixed classes: give it no labels"),
    (("--prot", "8000"), r"--prot: no such option.*--port"),
]


@pytest.mark.parametrize(("words", "message"), CANNOT)
def test_what_cannot_work_ends_the_command_with_one_line(
    toy_checkpoint: str,
    words: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("uvicorn.Server.run", lambda *_: pytest.fail("it serves"))
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    given = (*of(toy_checkpoint), "--port", str(free_port()), *words)
    try:
        assert re.search(message, one_line(command.main, monkeypatch, capsys, *given))
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_a_port_that_is_taken_is_one_line(
    toy_checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        line = one_line(command.main, monkeypatch, capsys, *of(toy_checkpoint), "--port", str(port))
    assert f"--port {port} of 127.0.0.1 cannot be used" in line
