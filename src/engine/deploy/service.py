"""Serves a checkpoint over HTTP: reads, batches, computes and answers requests."""

import argparse
import asyncio
import base64
import gc
import hmac
import io
import json
import math
import os
import re
import sys
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from src.engine.data.images import read_image
from src.engine.data.prepare import prepare_inputs
from src.engine.deploy.batcher import Batcher, Threads, TooManyError
from src.engine.deploy.connections import Guard, Server, connection_limit, connection_options, describe, printable
from src.engine.deploy.inference import Inference
from src.engine.system.errors import InputError
from src.engine.system.hardware import check_accelerator, choose_precision, device_of, return_freed_memory

PAGE = Path(__file__).with_name("page.html")
MAX_PIXELS = 50_000_000  # per image; a small file can hold a huge image
LARGE_PIXELS = 2**20  # larger images, and larger bodies, are decoded one at a time: an image can take 1 GB
MAX_RATIO = 100  # of an image's sides: scaling the shorter one would make a huge image
MAX_DECODING = 1024  # small bodies that are or wait to be decoded
MAX_DECODING_PIXELS = 4 * MAX_PIXELS  # of large images, and bytes of large bodies, that are or wait to be decoded
MAX_BODIES = 300_000_000  # bytes of all bodies
MAX_TEXT = 100_000  # characters; a tokenizer reads all of a text before it is cut
MAX_TOKENS = 2048  # generated per request
GENERATING = 2  # texts at the same time; more would slow all of them down
MAX_GENERATING = 32  # texts that are or wait to be generated
BODY_SECONDS = 15.0  # maximum time for a request body to arrive
SMALL_BODY = 2**15  # bytes; smaller JSON is decoded at once, which is faster than in a thread
LARGEST = sys.float_info.max
# Options of a request to generate text.
DEFAULTS: dict[str, Any] = {"max_new_tokens": 100, "temperature": 0.8, "top_k": None, "top_p": None, "seed": None}


class RequestReader:
    """Reads and checks requests; an invalid request gets a 4xx answer in one line.

    Args:
        inference: the loaded checkpoint.
        token: token that requests must send; None: none needed.
        max_bytes: maximum size of the body, in bytes.
    """

    def __init__(self, inference: Inference, token: str | None, max_bytes: int) -> None:
        self.kind = inference.kind
        self.data = inference.data
        self.ranges = getattr(inference.data, "value_ranges", None)
        self.check_sampling: Any = getattr(inference.task, "check_sampling", None)
        self.tokens = None if token is None else [token.encode("utf-8")]
        with suppress(UnicodeEncodeError):
            if token is not None and self.tokens is not None:
                self.tokens.append(token.encode("latin-1"))  # as some clients send it
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.small, self.large = Threads(2, MAX_DECODING), Threads(1, MAX_DECODING_PIXELS)

    async def __call__(self, request: Request, deadline: asyncio.Timeout, seconds: float) -> Any:
        """The input in a request.

        Args:
            request: the request.
            deadline: set to `seconds` from when the body has arrived.
            seconds: see `deadline`.

        Raises:
            HTTPException: the request cannot be used.
            TooManyError: too much is being read.
        """
        self._check_token(request.headers.get("authorization", ""))
        async with self._body(request) as body:
            deadline.reschedule(asyncio.get_running_loop().time() + seconds)
            form = request.headers.get("content-type", "")
            form = form if form.partition(";")[0].strip().lower() == "multipart/form-data" else ""
            is_image = self.kind == "image" and not form and not _is_json(body)
            if len(body) < SMALL_BODY and not form and not is_image:
                return self._decode(body, form, is_large=False)
            weight = len(body)
            if is_image or weight < LARGE_PIXELS:
                value = await self.small(self._decode, body, form, False)
                if not isinstance(value, int):
                    return value
                weight = value
            return await self.large(self._decode_large, body, form, weight=weight)

    def _check_token(self, header: str) -> None:
        scheme, _, given = header.encode("latin-1").partition(b" ")
        if self.tokens is None:
            return
        if scheme.lower() != b"bearer" or not any(hmac.compare_digest(given.strip(), token) for token in self.tokens):
            raise HTTPException(401, "give the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    def _decode_large(self, body: bytearray, form: str) -> Any:
        try:
            return self._decode(body, form, is_large=True)
        finally:
            return_freed_memory()  # otherwise up to 1 GB stays with this process

    def _decode(self, body: bytearray | bytes, form: str, is_large: bool) -> Any:
        """The input in a body; the number of its pixels if it is a large image and `is_large` is False."""
        if form:
            body = asyncio.run(_form_file(form, body))  # in a thread: a large form takes a while
        if not body:
            raise HTTPException(422, f"the body is empty: send {self._expected()}")
        if self.kind == "image" and not _is_json(body):
            return self._image(body, is_large)
        value = _json(body, self._expected())
        readers = {"image": self._pixels, "text": self._text, "prompt": self._prompt, "table": self._row}
        return readers[self.kind](value)

    def _expected(self) -> str:
        return {
            "image": "a PNG or JPEG, or JSON pixels from 0 to 255 as a list of rows",
            "text": 'JSON such as {"text": "..."}',
            "prompt": 'JSON such as {"prompt": "...", "max_new_tokens": 100}',
            "table": f"JSON numbers for all columns: {json.dumps(dict.fromkeys(getattr(self.data, 'columns', ()), 0))}",
        }[self.kind]

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytearray]:
        too_large = HTTPException(413, f"the body is larger than {self.max_bytes:,} bytes")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.max_bytes:
            raise too_large
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    async for chunk in request.stream():
                        body += chunk
                        self.held_bytes += len(chunk)
                        if len(body) > self.max_bytes:
                            raise too_large
                        if self.held_bytes > MAX_BODIES:
                            raise TooManyError
            except TimeoutError as error:
                raise HTTPException(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from error
            yield body
        finally:
            self.held_bytes -= len(body)

    def _image(self, body: bytearray | bytes, is_large: bool) -> tuple[Any, str] | int:
        try:
            with Image.open(io.BytesIO(body), formats=("PNG", "JPEG")) as header:
                width, height = header.size
            pixels = width * height
            is_next = pixels <= (MAX_PIXELS if is_large else LARGE_PIXELS)
            image = read_image(io.BytesIO(body), self.ranges) if is_next else None
        except Exception as error:  # a damaged file raises errors of many types
            raise HTTPException(422, f"not a usable image: it cannot be read; send {self._expected()}") from error
        if pixels > MAX_PIXELS:
            raise HTTPException(422, f"not a usable image: it has too many pixels; give at most {MAX_PIXELS:,}")
        return pixels if image is None else self._prepare(image)

    def _pixels(self, value: Any) -> tuple[Any, str]:
        wrong = HTTPException(422, f"not pixels: send {self._expected()}")
        value = value.get("pixels") if isinstance(value, dict) else value
        try:
            pixels = np.asarray(value)
        except ValueError as error:
            raise wrong from error
        if pixels.ndim == 1:
            side = math.isqrt(pixels.size)
            pixels = pixels.reshape(side, side) if side * side == pixels.size else pixels
        is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
        if not is_image or pixels.dtype.kind not in "iuf" or not pixels.size or pixels.size > MAX_PIXELS:
            raise wrong
        if not (pixels.min() >= 0 and pixels.max() <= 255):
            raise wrong
        return self._prepare(Image.fromarray(pixels.round().astype(np.uint8)))

    def _prepare(self, image: Image.Image) -> tuple[Any, str]:
        if max(image.size) > MAX_RATIO * min(image.size):
            raise HTTPException(422, f"not a usable image: one side is more than {MAX_RATIO} times the other")
        tensors, notes = prepare_inputs(self.data, [image])
        return tensors, notes[0]

    def _row(self, value: Any) -> dict[str, float]:
        """The numbers of a table's row, by column."""
        columns = self.data.columns
        if not isinstance(value, dict) or set(value) != set(columns):
            raise HTTPException(422, f"not a row: send {self._expected()}")
        for name in columns:
            if type(value[name]) not in (int, float) or not -LARGEST <= value[name] <= LARGEST:
                raise HTTPException(422, f"{name} is not a finite number: send {self._expected()}")
        return {name: float(value[name]) for name in columns}

    def _text(self, value: Any) -> str:
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str) or not text.strip():
            raise HTTPException(422, f"no text: send {self._expected()}")
        return _check_encodable(text)

    def _prompt(self, value: Any) -> dict[str, Any]:
        known = {"prompt", *DEFAULTS}
        if not isinstance(value, dict) or not isinstance(value.get("prompt"), str) or not value["prompt"]:
            raise HTTPException(422, f"no prompt: send {self._expected()}")
        if unknown := value.keys() - known:
            raise HTTPException(422, f"{sorted(unknown)[0]} is unknown; known: {', '.join(sorted(known))}")
        options = DEFAULTS | value
        integers = [options[name] for name in ("max_new_tokens", "top_k", "seed") if options[name] is not None]
        numbers = [options[name] for name in ("temperature", "top_p") if options[name] is not None]
        if not all(type(one) is int for one in integers) or not all(type(one) in (int, float) for one in numbers):
            raise HTTPException(422, "max_new_tokens, top_k and seed must be integers, temperature and top_p numbers")
        if options["temperature"] is None:
            raise HTTPException(422, "temperature: give a number")
        if options["max_new_tokens"] is None or options["max_new_tokens"] > MAX_TOKENS:
            raise HTTPException(422, f"max_new_tokens: give at most {MAX_TOKENS}")
        if options["seed"] is not None and not 0 <= options["seed"] < 2**63:
            raise HTTPException(422, "seed: give 0 or more, below 2**63")
        try:
            self.check_sampling(options["max_new_tokens"], options["temperature"], options["top_k"], options["top_p"])
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        _check_encodable(options["prompt"])
        return options


def _is_json(body: bytearray | bytes) -> bool:
    return re.match(rb"\s*[\[{]", body) is not None


def _json(body: bytearray | bytes, expected: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"the body is not JSON: send {expected}") from error


def _check_encodable(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise HTTPException(422, f"the text is too long: give at most {MAX_TEXT:,} characters")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise HTTPException(422, "the text is not valid Unicode: it has half of a surrogate pair") from error
    return text


async def _form_file(content_type: str, body: bytearray | bytes) -> bytes:
    """The first file or field of a form."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield bytes(body)

    try:
        parser = MultiPartParser(Headers({"content-type": content_type}), stream(), max_part_size=len(body) + 1)
        for value in (await parser.parse()).values():
            return await value.read() if isinstance(value, UploadFile) else value.encode()
    except (MultiPartException, KeyError, ValueError) as error:
        raise HTTPException(422, "the form cannot be read: send a form with one file") from error
    raise HTTPException(422, "the form is empty: send a form with one file")


class TextStream(StreamingResponse):
    """Streams a text; an error before its first piece is an answer, a later one ends the connection.

    Args:
        pieces: the text.
        seconds: maximum time of the whole answer.
    """

    def __init__(self, pieces: AsyncGenerator[str, None], seconds: float) -> None:
        super().__init__(pieces, media_type="text/plain; charset=utf-8")
        self.pieces = pieces
        self.seconds = seconds

    async def stream_response(self, send: Send) -> None:
        """Send the text; called by `__call__`, which cancels it if the client leaves."""
        start: Any = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        has_started = False
        try:
            async with aclosing(self.pieces), asyncio.timeout(self.seconds):
                async for piece in self.pieces:
                    if not has_started:
                        has_started = True
                        await send(start)
                    await send(
                        {"type": "http.response.body", "body": piece.encode(errors="replace"), "more_body": True}
                    )
                if not has_started:
                    await send(start)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            if has_started:  # the connection is closed, so that the client sees that the text is incomplete
                raise RuntimeError(f"a text was cut after {self.seconds:g} s: give a larger --timeout") from None
            raise


class Service:
    """The endpoints of a checkpoint.

    Args:
        inference: the loaded checkpoint.
        options: command-line options of `src.serve`.
        bfloat16: compute in bfloat16 instead of float32.

    `error` is what has ended the computing of batches, which must not happen.
    """

    def __init__(self, inference: Inference, options: argparse.Namespace, bfloat16: bool) -> None:
        self.inference = inference
        self.read = RequestReader(inference, options.token, int(options.max_body_mb * 10**6))
        self.timeout = options.timeout
        # Creates a context for each use: several threads generate at the same time.
        self.autocast = partial(torch.autocast, inference.device.type, torch.bfloat16, enabled=bfloat16)
        self.batcher = Batcher(self._compute, options.max_batch_size, options.batch_timeout)
        self.generating = Threads(GENERATING, MAX_GENERATING)
        self.error: BaseException | None = None
        facts = {
            "kind": inference.kind,
            "columns": list(getattr(inference.data, "columns", ())),
            "token": options.token is not None,
            "draws": getattr(inference.data, "drawn", False),
        }
        page = PAGE.read_text(encoding="utf-8")
        self.html = page.replace("{{facts}}", json.dumps(facts).replace("<", "\\u003c"))

    def app(self) -> Starlette:
        """The ASGI application."""
        endpoint = Route("/predict", self.predict, methods=["POST"])
        if self.inference.kind == "prompt":
            endpoint = Route("/generate", self.generate, methods=["POST"])
        routes = [endpoint, Route("/health", self.health), Route("/", self.page)]
        guard = Middleware(Guard, checks_host=self.read.tokens is None)
        return Starlette(
            routes=routes, middleware=[guard], exception_handlers=self._handlers(), lifespan=self._lifespan
        )

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
            TooManyError: answer(503, "too many requests are waiting: try again", **{"Retry-After": "1"}),
            TimeoutError: answer(504, f"the request took longer than {self.timeout:g} s"),
            Exception: answer(500, "internal error: see the log of the server"),
        }

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self.batcher.run())
        task.add_done_callback(self._loop_ended)
        yield
        task.cancel()
        for threads in self._threads():
            threads.stop()

    def _loop_ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            self.error = task.exception()

    def _threads(self) -> list[Threads]:
        return [self.batcher.thread, self.generating, self.read.small, self.read.large]

    def longest(self) -> float:
        """For how many seconds the longest computation has been running."""
        return max(threads.longest() for threads in self._threads())

    async def health(self, request: Request) -> Response:
        """Health check: 503 if the model has stopped, or has been busy with the same requests for too long."""
        if self.batcher.has_ended or self.longest() > 2 * self.timeout:
            return PlainTextResponse("the model does not answer", 503)
        return PlainTextResponse("ok")

    async def page(self, request: Request) -> Response:
        """The web page to try the model."""
        return HTMLResponse(self.html)

    async def predict(self, request: Request) -> Response:
        """Label and probabilities of an image or a text."""
        async with asyncio.timeout(None) as deadline:
            value = await self.read(request, deadline, self.timeout)
            answer, note = await self.batcher(value)
        return JSONResponse({**answer, "note": note} if note else answer)

    @torch.inference_mode()
    def _compute(self, values: list[Any]) -> list[tuple[dict[str, Any], str]]:
        if self.inference.kind == "image":
            parts = zip(*(tensors for tensors, _ in values), strict=True)
            prepared = tuple(torch.cat(part) for part in parts)
            notes = [note for _, note in values]
        else:
            prepared, notes = self.inference.prepare(values)
        with self.autocast():
            predicted = self.inference.predictions(tuple(one.to(self.inference.device) for one in prepared))
        rows = self.inference.rows(predicted)
        return [
            ({name: _as_json(one) for name, one in row.items()}, note) for row, note in zip(rows, notes, strict=True)
        ]

    async def generate(self, request: Request) -> Response:
        """Stream the continuation of a text."""
        async with asyncio.timeout(None) as deadline:
            options = await self.read(request, deadline, self.timeout)
        return TextStream(self._pieces(options), self.timeout)

    async def _pieces(self, options: dict[str, Any]) -> AsyncGenerator[str, None]:
        """The pieces of a text that a thread generates, however slowly they are read."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        is_wanted = True

        def generate() -> None:
            with self.autocast():
                for piece in self._generate(options):
                    if not is_wanted:
                        return
                    loop.call_soon_threadsafe(pieces.put_nowait, piece)

        task = asyncio.create_task(self.generating(generate))
        task.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await task
        finally:
            is_wanted = False
            task.cancel()

    def _generate(self, options: dict[str, Any]) -> Iterator[str]:
        tokenizer = self.inference.data.tokenizer
        prompt = torch.from_numpy(tokenizer.encode(options["prompt"]).astype("int64"))
        seed = options["seed"]
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(seed)
        limits = {name: options[name] for name in ("temperature", "top_k", "top_p")}
        task: Any = self.inference.task
        ids = task.generate(prompt, options["max_new_tokens"], **limits, generator=generator)
        yield from tokenizer.stream(ids)


def _as_json(value: Any) -> Any:
    """A value of a row; a mask (H, W) becomes a PNG as a data URL."""
    if not isinstance(value, torch.Tensor):
        return value
    file = io.BytesIO()
    Image.fromarray(value.byte().cpu().numpy()).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def run_service(options: argparse.Namespace) -> None:
    """Serve until a signal arrives, then finish open requests.

    Raises:
        InputError: the checkpoint or the accelerator cannot be used.
    """
    check_accelerator(options.accelerator)
    inference = Inference(options.ckpt_path, trust=options.trust)
    inference = inference.to(device_of(options.accelerator))
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
    server = Server(config, message, BODY_SECONDS + 3 * options.timeout, lambda: service.error is not None)
    try:
        server.run()
    finally:
        gc.unfreeze()
        if service.error is not None:
            print(f"error: the model has stopped: {describe(service.error)}", file=sys.stderr, flush=True)
        if service.longest():  # Python would wait for the thread
            os._exit(0 if service.error is None else 1)
    if service.error is not None:
        sys.exit(1)
