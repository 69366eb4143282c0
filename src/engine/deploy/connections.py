"""The server below `Service`: limits of its connections, and a log of one line per fault."""

import asyncio
import ipaddress
import logging
import math
import resource
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

IDLE_SECONDS = 15.0  # a connection without a request; a request whose head is incomplete
MAX_HEAD = 2**16  # bytes of a request besides its body
MAX_CONNECTIONS = 1000
OTHER_FILES = 100  # open files that are not connections
SHUTDOWN_SECONDS = 6  # for open requests when the server stops


def connection_limit() -> tuple[int, int]:
    """How many connections are kept at the same time, and how many files this process may open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    files = sys.maxsize if files == resource.RLIM_INFINITY else files
    return min(MAX_CONNECTIONS, max(files - OTHER_FILES, files // 2)), files


class Connection(HttpToolsProtocol):
    """A connection with limits that uvicorn lacks: on the size of a head, on the time for it, and on idle time.

    When there are too many connections, the one that has been idle for longest is closed.
    """

    since = 0.0  # time of the last event: connected, request begun, head complete, answered
    overhead = 0  # bytes received since the last complete request that are not its body

    @property
    def is_idle(self) -> bool:
        """Whether all requests are answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.loop.time()
        if len(self.connections) >= (self.config.limit_concurrency or math.inf):
            connections: Any = self.connections
            if idle := [one for one in connections if one is not self and one.is_idle]:
                min(idle, key=lambda one: one.since).drop()

    def drop(self) -> None:
        """Close it at once."""
        self.connections.discard(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.overhead += len(data)
        super().data_received(data)
        if self.overhead > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response(f"The head of the request is larger than {MAX_HEAD} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.since = self.loop.time()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.since = self.loop.time()

    def on_body(self, body: bytes) -> None:
        self.overhead -= 2 * len(body)  # twice, for the lengths of small chunks
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.overhead = 0

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.since = self.loop.time()


class Server(uvicorn.Server):
    """Prints a message when it is ready, and closes late connections.

    Args:
        config: with `connection_options`.
        message: printed when it is ready.
        longest: seconds after which a request is given up.
    """

    def __init__(self, config: uvicorn.Config, message: str, longest: float) -> None:
        super().__init__(config)
        self.message = message
        self.longest = longest

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self.message, file=sys.stderr, flush=True)

    async def on_tick(self, counter: int) -> bool:
        now = asyncio.get_running_loop().time()
        connections: Any = list(self.server_state.connections)
        for connection in connections:
            if now - connection.since > (IDLE_SECONDS if connection.is_idle else self.longest):
                connection.drop()
        return await super().on_tick(counter)


class Guard:
    """Refuses requests that a web page of another site has sent, and answers requests that a shutdown cancels.

    Browsers let any page send requests to this machine, under a name of the page's choice (DNS rebinding). So without a
    token, `Host` must be an IP address or a name of this machine, and `Origin` the same host.

    Args:
        app: the application.
        checks_host: whether to check Host and Origin.
    """

    def __init__(self, app: ASGIApp, checks_host: bool) -> None:
        self.app = app
        self.names = {"localhost", socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
        self.checks_host = checks_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.checks_host and (reason := self._refusal(Headers(scope=scope))):
            await JSONResponse({"detail": reason}, 403)(scope, receive, send)
            return
        has_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            if scope["type"] != "http" or has_started:
                raise
            await JSONResponse({"detail": "the service is stopping"}, 503)(scope, receive, send)

    def _refusal(self, headers: Headers) -> str:
        hosts = headers.getlist("host")
        name = hosts[0].lower() if len(hosts) == 1 else ""
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if name not in self.names:
            try:
                ipaddress.ip_address(name)
            except ValueError:
                known = ", ".join(sorted(self.names))
                return f"this host name is not served: use an IP address, {known}, or start the service with --token"
        if any(origin.lower().partition("://")[2] != hosts[0].lower() for origin in headers.getlist("origin")):
            return "requests of other sites' pages are not served: start the service with --token"
        return ""


class OneLine(logging.Formatter):
    """A log record on one line, with type, message and place of its exception."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info and (error := record.exc_info[1]):
            while error.__cause__ is not None:
                error = error.__cause__
            text += f": {traceback.format_exception_only(error)[-1].strip()}"
            for frame in traceback.extract_tb(error.__traceback__)[-1:]:
                text += f" ({Path(frame.filename).name}:{frame.lineno})"
        return printable(f"{record.levelname.lower()}: {text}")


def printable(text: str) -> str:
    """A text on one line, cut, without control characters: it may repeat what a stranger sent."""
    return "".join(one if one.isprintable() else "?" for one in " ".join(text.split()))[:1000]


def connection_options(limit: int) -> dict[str, Any]:
    """Options of `uvicorn.Config`: these connections, at most `limit` of them, and this log."""
    loggers = {
        name: {"handlers": ["stderr"], "level": "ERROR", "propagate": False}
        for name in ("uvicorn", "asyncio", "python_multipart", "PIL")
    }
    return {
        "http": Connection,
        "ws": "none",
        "limit_concurrency": limit + 1,  # uvicorn answers 503 if as many requests are open
        "backlog": OTHER_FILES // 2,
        "timeout_keep_alive": int(IDLE_SECONDS),
        "timeout_graceful_shutdown": SHUTDOWN_SECONDS,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "log_level": "error",  # a malformed request is not worth a line
        "log_config": {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"()": OneLine}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "loggers": loggers,
        },
    }
