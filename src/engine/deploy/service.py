"""Serves a checkpoint over HTTP: reads, batches, computes and answers requests."""

import argparse
import asyncio
import base64
import gc
import io
import json
import os
import sys
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from src.engine.cli.command import data_options
from src.engine.deploy.batcher import Batcher, RoundRobin, Threads
from src.engine.deploy.connections import Guard, Server, connection_limit, connection_options, printable
from src.engine.deploy.inference import NOT_FINITE, Inference, is_finite, mask_image
from src.engine.deploy.requests import BODY_SECONDS, RequestReader
from src.engine.system.errors import InputError
from src.engine.system.hardware import check_accelerator, choose_precision

PAGE = Path(__file__).with_name("page.html")
GENERATING = 8  # texts at the same time
MAX_GENERATING = 32  # texts being generated or waiting


class Service:
    """The endpoints of a checkpoint.

    Args:
        inference: the loaded checkpoint.
        options: command-line options of `src.serve`.
        bfloat16: compute in bfloat16 instead of float32.
    """

    def __init__(self, inference: Inference, options: argparse.Namespace, bfloat16: bool) -> None:
        self.inference = inference
        self.read = RequestReader(inference, options.token, int(options.max_body_mb * 10**6))
        self.timeout = options.timeout
        # Creates a context for each use, because several threads compute.
        self.autocast = partial(torch.autocast, inference.device.type, torch.bfloat16, enabled=bfloat16)
        self.batcher = Batcher(self._compute, options.max_batch_size, options.batch_timeout)
        self.writing = RoundRobin(GENERATING, MAX_GENERATING, lambda: self.autocast().__enter__())  # type: ignore[no-untyped-call]
        together = getattr(inference.task, "generate_together", None)
        self.writer: Any = together(GENERATING) if together else inference.task
        self.loop: asyncio.Task[None] | None = None
        facts = {
            "kind": inference.kind,
            "columns": list(getattr(inference.data, "columns", ())),
            "texts": self.read.categories,
            "token": options.token is not None,
            "draws": getattr(inference.data, "drawn", False),
            "suffixes": list(getattr(inference.data, "file_suffixes", ())),
            "title": getattr(inference.data, "input_title", ""),
        }
        script = getattr(inference.data, "page_script", None)
        self.html = page(facts, script.read_text(encoding="utf-8") if script else "")

    def app(self) -> Starlette:
        """The ASGI application."""
        endpoint = Route("/predict", self.predict, methods=["POST"])
        if self.inference.kind == "prompt":
            endpoint = Route("/generate", self.generate, methods=["POST"])
        routes = [endpoint, Route("/health", self.health), Route("/", self.page)]
        guards = [Middleware(Guard, checks_host=self.read.token is None)]
        if self.read.token is not None:  # pages of other sites may ask, with the token
            allowed: Any = {"allow_methods": ["POST"], "allow_headers": ["Authorization", "Content-Type"]}
            guards.append(Middleware(CORSMiddleware, allow_origins=["*"], **allowed))
        return Starlette(routes=routes, middleware=guards, exception_handlers=self._handlers(), lifespan=self._lifespan)

    def _handlers(self) -> Any:
        """An answer to each error of a request."""

        def answer(status: int, detail: str = "", **headers: str) -> Any:
            async def handle(_: Request, error: Exception) -> Response:
                return JSONResponse({"detail": detail or printable(str(error))}, status, headers)

            return handle

        async def http_error(_: Request, error: HTTPException) -> Response:
            return JSONResponse({"detail": printable(error.detail)}, error.status_code, error.headers)

        return {
            HTTPException: http_error,
            InputError: answer(422),
            ClientDisconnect: answer(400),
            asyncio.QueueFull: answer(503, "too many requests are waiting: try again", **{"Retry-After": "1"}),
            TimeoutError: answer(504, f"the request took longer than {self.timeout:g} s"),
            Exception: answer(500, "internal error: see the log of the server"),
        }

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.loop = asyncio.create_task(self.batcher.run())
        yield
        self.loop.cancel()
        for threads in self._threads():
            threads.stop()

    def _threads(self) -> list[Threads]:
        return [self.batcher.thread, self.writing.thread, self.read.small, self.read.large]

    def longest(self) -> float:
        """For how many seconds the longest computation has been running."""
        return max(threads.longest() for threads in self._threads())

    async def health(self, request: Request) -> Response:
        """Health check: 503 if the model has stopped, or has been busy with the same requests for too long."""
        if self.loop is None or self.loop.done() or self.longest() > 2 * self.timeout:
            return PlainTextResponse("the model does not answer", 503)
        return PlainTextResponse("ok")

    async def page(self, request: Request) -> Response:
        """The web page to try the model."""
        return HTMLResponse(self.html)

    async def predict(self, request: Request) -> Response:
        """The prediction for one input, as JSON."""
        async with asyncio.timeout(None) as deadline:
            value = await self.read(request, deadline, self.timeout)
            answer, note = await self.batcher(value)
        if not is_finite(answer):
            raise HTTPException(500, NOT_FINITE)
        return JSONResponse({**answer, "note": note} if note else answer)

    @torch.inference_mode()
    def _compute(self, values: list[Any]) -> list[tuple[dict[str, Any], str]]:
        sizes = []
        if self.inference.kind in ("image", "file"):
            parts = zip(*(tensors for tensors, *_ in values), strict=True)
            prepared = tuple(torch.cat(part) for part in parts)
            notes, sizes = [note for _, note, _ in values], [size for *_, size in values]
        else:
            prepared, notes = self.inference.prepare(values)
        try:
            with self.autocast():
                predicted = self.inference.predictions(tuple(one.to(self.inference.device) for one in prepared))
            rows = self.inference.rows(predicted, len(prepared[0]), sizes)
        except InputError as error:  # not of the client
            raise error.__cause__ or RuntimeError(str(error)) from None
        return [
            ({name: _as_json(one) for name, one in row.items()}, note) for row, note in zip(rows, notes, strict=True)
        ]

    async def generate(self, request: Request) -> Response:
        """Stream the continuation of a text; an error before its first piece is an answer, a later one ends it."""
        async with asyncio.timeout(None) as deadline:
            options = await self.read(request, deadline, self.timeout)
            pieces = self.writing(self._generate(options))
            first = await anext(pieces, "")
        stream = self._stream(first, pieces, deadline.when())
        return StreamingResponse(stream, media_type="text/plain; charset=utf-8")

    async def _stream(self, piece: str, pieces: AsyncGenerator[str, None], end: float | None) -> AsyncIterator[bytes]:
        async with aclosing(pieces):
            while piece:
                yield piece.encode(errors="replace")
                try:
                    async with asyncio.timeout_at(end):
                        piece = await anext(pieces, "")
                except TimeoutError:  # the connection is closed, so that the client sees that the text is incomplete
                    raise RuntimeError(f"a text was cut after {self.timeout:g} s: give a larger --timeout") from None

    def _generate(self, options: dict[str, Any]) -> Generator[str, None, None]:
        tokenizer = self.inference.data.tokenizer
        prompt = torch.from_numpy(tokenizer.encode(options["prompt"]).astype("int64"))
        seed = options["seed"]
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(seed)
        limits = {name: options[name] for name in ("temperature", "top_k", "top_p")}
        ids = self.writer.generate(prompt, options["max_new_tokens"], **limits, generator=generator)
        yield from filter(None, tokenizer.stream(ids, prompt.tolist()))


def page(facts: dict[str, Any], script: str = "") -> str:
    """The HTML of the service's page; `script`: JavaScript of the data."""
    html = PAGE.read_text(encoding="utf-8").replace("{{script}}", script)
    return html.replace("{{facts}}", json.dumps(facts).replace("<", "\\u003c"))


def _as_json(value: Any) -> Any:
    """A value of a row; a mask (H, W) becomes a PNG of class numbers as a data URL."""
    if not isinstance(value, torch.Tensor):
        return value
    file = io.BytesIO()
    mask_image(value).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def run_service(options: argparse.Namespace) -> None:
    """Serve until a signal arrives, then finish open requests.

    Raises:
        InputError: the checkpoint or the accelerator cannot be used.
    """
    check_accelerator(options.accelerator)
    inference = Inference(options.ckpt_path, data=data_options(options), trust=options.trust)
    device = torch.accelerator.current_accelerator(check_available=True) if options.accelerator != "cpu" else None
    inference = inference.to(device or torch.device("cpu"))
    inference.name_classes(options.labels, "--labels")
    inference.check_on_sample()
    precision, reason = choose_precision(options.accelerator, options.precision)
    print(f"{inference.path}: precision {precision} ({reason})", file=sys.stderr)
    Image.MAX_IMAGE_PIXELS = None  # `RequestReader` looks at their number
    warnings.simplefilter("ignore")  # PIL's, of what strangers send
    service = Service(inference, options, precision == "bf16-mixed")
    limit, files = connection_limit()
    config = uvicorn.Config(service.app(), options.host, options.port, **connection_options(limit))
    gc.freeze()  # otherwise garbage collection scans all of torch and delays requests by a quarter of a second
    path = "/generate" if inference.kind == "prompt" else "/predict"
    address = f"http://{'[::1]' if options.host == '::' else options.host}:{options.port}"
    message = (
        f"Serving {address}/ (a page to try it), POST {path}, GET /health; at most {limit:,} connections (this process"
        f" may open {files:,} files); Ctrl-C stops"
    )
    server = Server(config, message, BODY_SECONDS + 3 * options.timeout)
    try:
        server.run()
    finally:
        gc.unfreeze()
        if service.longest():  # Python would wait for the thread
            os._exit(0)
