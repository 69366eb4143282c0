"""Limits of the server: connections that are idle, slow, too many or endless end, and the others are answered."""

import contextlib
import json
import logging
import resource
import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from src.engine.deploy import connections
from tests.engine.deploy.local import Local, classifier, local
from tests.engine.deploy.served import raw
from tests.engine.deploy.test_service import even, file_of, waited_for

HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@contextlib.contextmanager
def connected(one: Local, data: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", one.port), timeout=20) as opened:
        opened.sendall(data)
        yield opened


def rest_of(opened: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := opened.recv(65536):
            found += part
    return found


def is_closed(opened: socket.socket, data: bytes) -> bool:
    """Whether the server closes the connection while data goes on coming."""
    with contextlib.suppress(ConnectionError):
        for _ in range(5000):
            opened.sendall(data)
        return False
    return True


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        HEAD,
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + HEAD,
        b"PUT /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nhalf",
    ],
)
def test_a_connection_that_waits_for_nothing_is_closed(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.3)
    with local(classifier(even)) as one, connected(one, begun) as opened:
        assert rest_of(opened).startswith(b"HTTP/1.1" if b" /health" in begun else b"")
        assert not one.server.server_state.connections


@pytest.mark.slow
def test_a_client_that_reads_nothing_is_given_up() -> None:
    with local(classifier(even), longest=0.5) as one, connected(one) as opened:
        opened.settimeout(0.2)
        with contextlib.suppress(OSError):
            while True:
                opened.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100)
        waited_for(lambda: not one.server.server_state.connections)
        waited_for(lambda: not one.server.server_state.tasks)
        assert one.predict([[1]]).status == 200


def test_idle_connections_make_way_for_new_ones() -> None:
    with local(classifier(even), limit=10) as one, contextlib.ExitStack() as stack:
        for number in range(50):
            stack.enter_context(connected(one, HEAD if number % 2 else b""))
        assert one.predict([[1]]).status == 200
        assert len(one.server.server_state.connections) <= 10


def test_beyond_the_limit_busy_connections_stay_and_new_ones_are_refused() -> None:
    held = threading.Event()
    body = b"Content-Length: 5\r\n\r\n[[1]]"
    with local(classifier(lambda pixels: held.wait(30) and even(pixels)), limit=3) as one:
        with contextlib.ExitStack() as stack:
            busy = [stack.enter_context(connected(one, HEAD + body)) for _ in range(3)]
            waited_for(lambda: len(one.server.server_state.tasks) == 3)
            assert one.predict([[1]]).status == 503
            held.set()
            assert all(opened.recv(99).startswith(b"HTTP/1.1 200") for opened in busy)
        waited_for(lambda: not one.server.server_state.connections)
        assert one.predict([[1]]).status == 200


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n"


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (HEAD, b"A: b\r\n" * 1000),
        (HEAD + b"A: ", b"a" * 9000),
        (b"POST /", b"a" * 9000),
        (b"", b"\r\n" * 9000),
        (CHUNKED + b"0\r\n", b"A: b\r\n" * 1000),
        (CHUNKED + b"0\r\nA: ", b"a" * 9000),
        (CHUNKED + b"1;", b"a" * 9000),
    ],
)
def test_an_endless_head_is_refused(begun: bytes, more: bytes) -> None:
    with local(classifier(even)) as one, connected(one, begun) as opened:
        assert is_closed(opened, more)
        assert one.predict([[1]]).status == 200


def test_a_head_that_is_too_large_is_told() -> None:
    with local(classifier(even)) as one:
        answer = raw(one.port, HEAD + b"A: " + b"a" * 70_000)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"The head of the request is larger than 65536 bytes.")


def test_a_body_in_tiny_chunks_is_no_large_head() -> None:
    rows = json.dumps([[1] * 400] * 150).encode()
    chunks = b"".join(b"8\r\n%b\r\n" % rows[at : at + 8] for at in range(0, len(rows) // 8 * 8, 8))
    last = rows[len(rows) // 8 * 8 :]
    end = b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last) if last else b"0\r\n\r\n"
    with local(classifier(even)) as one:
        assert raw(one.port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + end).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("length", [b"Transfer-Encoding: chunked\r\n\r\n", b"Content-Length: 99999999999\r\n\r\n"])
def test_a_refused_body_is_not_read_for_ever(length: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.3)
    part = b"f4240\r\n" + b"0" * 1_000_000 + b"\r\n"
    with local(classifier(even)) as one, connected(one, HEAD + length + part + part) as opened:
        assert opened.recv(12) == b"HTTP/1.1 413"
        assert is_closed(opened, part)
        waited_for(lambda: not one.server.server_state.connections)


def test_a_client_that_sends_a_request_and_leaves_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    held = threading.Event()
    with local(classifier(even, lambda image: held.wait(30))) as one:
        image = file_of("PNG")
        with connected(one, HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(image), image)):
            waited_for(lambda: one.service.longest() > 0)
        waited_for(lambda: not one.server.server_state.connections)
        held.set()
        waited_for(lambda: not one.server.server_state.tasks)
    assert capfd.readouterr().err == "ready\n"


def test_a_request_that_is_open_when_the_service_stops_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connections, "SHUTDOWN_SECONDS", 0.2)
    held = threading.Event()
    with local(classifier(lambda pixels: held.wait(30) and even(pixels))) as one:
        with (
            connected(one, HEAD + b"Content-Length: 5\r\n\r\n[[1]]") as computed,
            connected(one, HEAD + b"Content-Length: 5\r\n\r\n[[") as half,
        ):
            waited_for(lambda: len(one.server.server_state.tasks) == 2 and one.service.longest() > 0)
            one.server.should_exit = True
            for opened in (computed, half):
                answer = rest_of(opened)
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert answer.endswith(b'{"detail":"the service is stopping"}')
        held.set()
    assert all(line.startswith(("ready", "error: Cancel ")) for line in capfd.readouterr().err.splitlines())


@pytest.mark.parametrize(("files", "limit"), [(1024, 924), (150, 75), (100_000, 1000), (resource.RLIM_INFINITY, 1000)])
def test_the_limit_leaves_files_for_other_use(files: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, files))
    assert connections.connection_limit()[0] == limit


def test_a_line_of_the_log_is_one_line_whatever_is_in_it() -> None:
    try:
        raise ValueError("two\nlines\x1b[31m\r and \u2028 more")
    except ValueError:
        record = logging.LogRecord("uvicorn", logging.ERROR, "", 0, "Exception in %s\n", ("ASGI",), sys.exc_info())
    line = connections.OneLine().format(record)
    assert line.startswith("error: Exception in ASGI : ValueError: two lines?[31m and more (test_connections.py:")
    assert len(line.splitlines()) == 1
