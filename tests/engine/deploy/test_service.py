"""Faults of model and clients: each request gets an answer, and the others theirs."""

import base64
import contextlib
import http.client
import io
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from src.engine.deploy import batcher, requests, service
from src.engine.deploy.inference import Inference
from src.engine.system.errors import InputError
from tests.engine.deploy.local import Local, classifier, local, writer
from tests.engine.deploy.served import TRUSTED, Answer
from tests.toy import ToyData


def even(pixels: list[int]) -> list[list[float]]:
    return [[0.5, 0.5] for _ in pixels]


def waited_for(condition: Callable[[], bool], seconds: int = 20) -> None:
    """Wait until something is so."""
    for _ in range(100 * seconds):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it never was so")


@contextlib.contextmanager
def asked(one: Local, *bodies: Any) -> Iterator[list["Future[Answer]"]]:
    """Requests that are on their way."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        yield [pool.submit(one.predict, body) for body in bodies]


def exit_now(pixels: list[int]) -> Any:
    raise SystemExit(3)


def unusable(pixels: list[int]) -> Any:
    raise InputError("Net.forward does not take the inputs of Data") from ValueError("too many values")


FAULTS = {
    "an error": lambda pixels: 1 / 0,
    "an end of an iterator": lambda pixels: next(iter(())),
    "an exit": exit_now,
    "NaN": lambda pixels: [[math.nan, math.nan] for _ in pixels],
    "too few answers": lambda pixels: [],
    "too many classes": lambda pixels: [[0.1] * 3 for _ in pixels],
    "no numbers": lambda pixels: None,
    "an error that names the model": unusable,
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_image_that_the_model_cannot_take_gets_an_error_and_the_others_their_answer(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def compute(pixels: list[int]) -> Any:
        return FAULTS[name](pixels) if 13 in pixels else even(pixels)

    with local(classifier(compute), batch_timeout=0.2) as one:
        with asked(one, [[1]], [[13]], [[2]]) as answers:
            statuses = [answer.result().status for answer in answers]
        assert one.predict([[3]]).status == 200
        detail = "the model's output is not a finite number" if name == "NaN" else "internal error: see the log of the"
        assert one.predict([[13]]).json["detail"].startswith(detail)
        assert one.ask("GET", "/health").status == 200
    assert statuses[1] == 500
    # A batch with NaN, or too many classes, is not the fault of one image: those in its batch get the error too.
    assert name in ("NaN", "too many classes") or statuses == [200, 500, 200]
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "ready"
    assert all(line.startswith("error: Exception in ASGI application") for line in lines[1:])


def test_a_model_that_does_not_answer_is_given_up_and_told_by_health() -> None:
    held = threading.Event()
    with local(classifier(lambda pixels: held.wait(30) and even(pixels)), timeout=0.1) as one:
        answer = one.predict([[1]])
        assert (answer.status, answer.json["detail"]) == (504, "the request took longer than 0.1 s")
        waited_for(lambda: one.ask("GET", "/health").status == 503)
        held.set()
        waited_for(lambda: one.ask("GET", "/health").status == 200)
        assert one.predict([[1]]).status == 200


def test_more_than_can_wait_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "MAX_WAITING", 1)
    held = threading.Event()
    with local(classifier(lambda pixels: held.wait(30) and even(pixels)), max_batch_size=1) as one:
        queue = one.service.batcher.queue
        with asked(one, [[1]]) as first:
            waited_for(lambda: one.service.longest() > 0)
            with asked(one, [[2]]) as second:
                waited_for(queue.full)
                refused = one.predict([[3]])
                held.set()
            assert [first[0].result().status, second[0].result().status] == [200, 200]
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert "too many requests are waiting" in refused.json["detail"]


@pytest.mark.slow
def test_labels_that_do_not_fit_the_classes_are_refused_at_the_start(
    toy_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for labels, message in (
        (("left", "right"), "was trained with 3 labels, ToyData has 2: number 2 was middle, is right"),
        (("left", "right", "left"), "several labels of the same name"),
    ):
        monkeypatch.setattr(ToyData, "labels", labels)
        with pytest.raises(InputError, match=message):
            Inference(toy_checkpoint, trust=[TRUSTED])


def test_an_input_that_the_data_refuses_is_the_clients_fault() -> None:
    def refuse(image: Image.Image) -> None:
        raise InputError("no ink in\nthis image")

    with local(classifier(even, refuse)) as one:
        answer = one.predict([[1]])
    assert (answer.status, answer.json["detail"]) == (422, "no ink in this image")


def file_of(kind: str, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "status"), [("PNG", 200), ("JPEG", 200), ("GIF", 422), ("TIFF", 422), ("BMP", 422)])
def test_png_and_jpeg_are_taken_and_nothing_else(kind: str, status: int) -> None:
    with local(classifier(even)) as one:
        assert one.predict(file_of(kind)).status == status


@pytest.mark.parametrize("image", [file_of("PNG", (2, 900)), [[1] * 900] * 2])
def test_an_image_that_would_be_huge_when_scaled_is_refused(image: Any) -> None:
    with local(classifier(even)) as one:
        assert "one side is more than 100 times the other" in one.predict(image).json["detail"]


def test_large_images_wait_for_each_other_and_for_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "LARGE_PIXELS", 5000)
    monkeypatch.setattr(requests, "MAX_DECODING_PIXELS", 3 * 100 * 100)
    held = threading.Event()
    running: list[int] = []

    def prepare(image: Image.Image) -> None:
        if image.width == 100:
            running.append(len(one.service.read.large.started))
            held.wait(30)

    with local(classifier(even, prepare)) as one:
        large = file_of("PNG", (100, 100))
        with asked(one, large, large, large) as answers:
            waited_for(lambda: one.service.read.large.free == 0)
            refused = one.predict(large)
            assert one.predict(file_of("PNG")).status == 200
            assert one.ask("GET", "/health").status == 200
            held.set()
        assert refused.status == 503
        assert [answer.result().status for answer in answers] == [200] * 3
        assert running == [1, 1, 1]


def test_bodies_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_BODIES", 1000)
    with local(classifier(even)) as one, socket.create_connection(("127.0.0.1", one.port)) as other:
        other.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999\r\n\r\n" + b"1" * 900)
        waited_for(lambda: one.service.read.held_bytes == 900)
        assert one.predict(b"1" * 200).status == 503
        other.close()
        waited_for(lambda: one.service.read.held_bytes == 0)
        assert one.predict([[1]]).status == 200


def test_a_client_that_leaves_in_mid_body_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    with local(classifier(even)) as one:
        with socket.create_connection(("127.0.0.1", one.port)) as other:
            other.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999\r\n\r\nhalf")
            waited_for(lambda: one.service.read.held_bytes == 4)
        waited_for(lambda: not one.server.server_state.tasks)
        assert one.service.read.held_bytes == 0
    assert capfd.readouterr().err == "ready\n"


def test_a_token_is_compared_whatever_bytes_a_client_sends() -> None:
    with local(classifier(even), token="a secret") as one:

        def status(value: bytes) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=20)
            connection.request("POST", "/predict", b"[[1]]", {"Authorization": value})
            return connection.getresponse().status

        assert [status(b"Bearer a secret"), status(b"bearer  a secret")] == [200, 200]
        assert [status(value) for value in (b"Bearer", b"Bearer \xc3\xa4", b"Basic a secret")] == [401] * 3


def test_a_page_of_another_site_is_refused_without_a_token() -> None:
    with local(classifier(even)) as one:

        def status(host: str, origin: str | None = None) -> int:
            headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
            return one.predict([[1]], **headers).status

        own = f"127.0.0.1:{one.port}"
        for host in (own, "localhost:99", "[::1]:8000", "192.168.1.7", socket.gethostname()):
            assert status(host) == 200, host
        assert status(own, f"http://{own}") == 200
        for host in ("evil.example", "evil.example:8000", "", "127.0.0.1.evil.example", "localhost.evil.example"):
            assert status(host) == 403, host
        for origin in ("http://evil.example", "null", f"http://127.0.0.1:{one.port + 1}", "http://127.0.0.1"):
            assert status(own, origin) == 403, origin
        assert "--token" in one.ask("GET", "/", Host="evil.example").json["detail"]
    with local(classifier(even), token="secret") as one:
        answer = one.predict([[1]], Host="model.example", Origin="http://site.example", Authorization="Bearer secret")
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        answer = one.ask("OPTIONS", "/predict", Origin="http://site.example", **asks)  # as a browser, without the token
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "*")


PROMPT = {"prompt": "to be"}


def begun(one: Local) -> http.client.HTTPResponse:
    """An answer of `/generate` whose body has not been read."""
    return one.stream("/generate", PROMPT)


def endless(prompt: str, before: list[int]) -> Iterator[str]:
    while True:
        yield "la "
        threading.Event().wait(0.01)


def test_a_text_that_takes_too_long_is_cut_and_the_client_sees_it(capfd: pytest.CaptureFixture[str]) -> None:
    with local(writer(endless), timeout=0.3) as one:
        with pytest.raises(http.client.IncompleteRead) as cut:
            begun(one).read()
        waited_for(lambda: not one.service.longest())
    assert cut.value.partial.startswith(b"la la")
    lines = capfd.readouterr().err.splitlines()[1:]
    assert len(lines) == 1
    assert "a text was cut after 0.3 s: give a larger --timeout" in lines[0]


def test_a_text_that_does_not_begin_in_time_is_given_up() -> None:
    held = threading.Event()

    def pieces(prompt: str, before: list[int]) -> Iterator[str]:
        held.wait(30)
        yield "la"

    with local(writer(pieces), timeout=0.1) as one:
        answer = one.generate(PROMPT)
        held.set()
    assert (answer.status, answer.json["detail"]) == (504, "the request took longer than 0.1 s")


def test_an_error_of_a_writer_is_an_answer_or_ends_the_text(capfd: pytest.CaptureFixture[str]) -> None:
    def pieces(prompt: str, before: list[int]) -> Iterator[str]:
        if prompt == "late":
            yield "la"
        raise InputError("the prompt is empty") if prompt == "input" else ZeroDivisionError("oh")

    with local(writer(pieces)) as one:
        assert one.generate({"prompt": "early"}).status == 500
        assert one.generate({"prompt": "input"}).json == {"detail": "the prompt is empty"}
        with pytest.raises(http.client.IncompleteRead):
            one.stream("/generate", {"prompt": "late"}).read()
    lines = capfd.readouterr().err.splitlines()[1:]
    assert len(lines) == 2
    assert all("ZeroDivisionError: oh (test_service.py:" in line for line in lines)


def test_readers_that_leave_or_wait_free_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "GENERATING", 2)
    monkeypatch.setattr(service, "MAX_GENERATING", 3)

    def pieces(prompt: str, before: list[int]) -> Iterator[str]:
        return endless(prompt, before) if prompt == "to be" else iter(["la"])

    with local(writer(pieces)) as one:
        places = one.service.writing
        body = json.dumps(PROMPT).encode()
        request = b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        readers = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(3)]
        for reader in readers:
            reader.sendall(request)
        waited_for(lambda: not places.free)
        refused = one.generate({"prompt": "or"})
        assert refused.status == 503
        for reader in readers:
            reader.close()
        waited_for(lambda: places.free == 3)
        assert one.generate({"prompt": "or"}).body == b"la"


@pytest.mark.parametrize("name", ["\ud800", "line\nbreak", "x" * 5000])
def test_a_wrong_name_is_told_in_one_short_line(name: str) -> None:
    with local(writer(endless)) as one:
        refused = one.generate({**PROMPT, name: 1})
    assert refused.status == 422
    assert len(refused.json["detail"]) <= 1000
    assert refused.json["detail"].isprintable()


def test_a_text_too_long_for_a_tokenizer_is_refused() -> None:
    with local(writer(endless)) as one:
        refused = one.generate({"prompt": "a" * 100_001})
    assert (refused.status, refused.json["detail"]) == (422, "the text is too long: give at most 100,000 characters")


def test_an_output_that_is_no_number_is_an_error_that_says_so() -> None:
    with local(classifier(lambda pixels: [[math.nan, 0.5] for _ in pixels])) as one:
        answer = one.predict([[1]])
    assert (answer.status, answer.json) == (500, {"detail": "the model's output is not a finite number"})


def test_a_mask_of_many_classes_keeps_their_numbers() -> None:
    inference = classifier(even)
    inference.rows = lambda predictions, count, sizes: [{"mask": torch.tensor([[300, 7]])} for _ in predictions]
    with local(inference) as one:
        mask = one.predict([[1]]).json["mask"]
    with Image.open(io.BytesIO(base64.b64decode(mask.partition(",")[2]))) as image:
        assert list(image.get_flattened_data()) == [300, 7]


def test_boxes_of_files_that_are_no_images_stay_shares_and_a_model_without_sampling_is_one_line() -> None:
    data = SimpleNamespace(
        read_file=lambda file: [len(file.read())], prepare=torch.tensor, input_kind="file", file_suffixes=(".n",)
    )
    found: Any = SimpleNamespace(kind="file", data=data, task=None)
    assert requests.RequestReader(found, None, 100)._file(b"abc")[2] == (1, 1)
    data.read_file = lambda _: Image.new("L", (30, 20))
    data.prepare = lambda images: torch.zeros(len(images), 1)
    assert requests.RequestReader(found, None, 100)._file(b"abc")[2] == (30, 20)
    alone = writer(lambda *_: iter(()))
    alone.task = SimpleNamespace(generate=alone.task.generate)
    with local(alone) as one:
        answer = one.generate(PROMPT)
    said = "this model cannot be sampled from: it has no method check_sampling"
    assert (answer.status, answer.json["detail"]) == (422, said)
