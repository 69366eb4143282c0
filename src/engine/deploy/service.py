"""Serves a checkpoint over HTTP: reads, batches, computes and answers requests."""

import argparse
import asyncio
import base64
import gc
import hmac
import io
import json
import math
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from src.engine.data.images import UNREADABLE, read_image
from src.engine.data.prepare import prepare_inputs
from src.engine.deploy.batcher import Batcher, TooManyError
from src.engine.deploy.inference import Inference
from src.engine.system.hardware import check_accelerator, choose_precision, device_of

PAGE = Path(__file__).with_name("page.html")
MAX_PIXELS = 50_000_000  # per image; a small file can hold a huge image
MAX_TOKENS = 2048  # generated per request
BODY_SECONDS = 15.0  # maximum time for a request body to arrive
SMALL_BODY = 2**15  # bytes; larger bodies are decoded in a thread, so that other requests do not wait
SHUTDOWN_SECONDS = 6  # for open requests when the server stops
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
        self.check_sampling: Any = getattr(inference.task, "check_sampling", None)
        self.token = token
        self.max_bytes = max_bytes

    async def __call__(self, request: Request) -> Any:
        if self.token is not None:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
                raise HTTPException(401, "give the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._body(request)
        except TimeoutError as error:
            raise HTTPException(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from error
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type == "multipart/form-data":
            body = await _form_file(request, body)
        if not body:
            raise HTTPException(422, f"the body is empty: send {self._expected()}")
        return self._decode(body) if len(body) < SMALL_BODY else await asyncio.to_thread(self._decode, body)

    def _decode(self, body: bytes) -> Any:
        if self.kind == "image" and body.lstrip()[:1] not in (b"[", b"{"):
            return self._image(body)
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

    async def _body(self, request: Request) -> bytes:
        length = request.headers.get("content-length", "")
        too_large = HTTPException(413, f"the body is larger than {self.max_bytes:,} bytes")
        if length.isdigit() and int(length) > self.max_bytes:
            raise too_large
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.max_bytes:
                raise too_large
        return bytes(body)

    def _image(self, body: bytes) -> tuple[Any, str]:
        try:
            return self._prepare(read_image(io.BytesIO(body)))
        except UNREADABLE as error:
            reason = (
                "it has too many pixels" if isinstance(error, Image.DecompressionBombError) else "it cannot be read"
            )
            raise HTTPException(422, f"not a usable image: {reason}; send {self._expected()}") from error

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
        tensors, notes = prepare_inputs(self.data, [image])
        return tensors, notes[0]

    def _row(self, value: Any) -> dict[str, float]:
        """The numbers of a table's row, by column."""
        columns = self.data.columns
        if not isinstance(value, dict) or set(value) != set(columns):
            raise HTTPException(422, f"not a row: send {self._expected()}")
        if bad := [
            name for name in columns if type(value[name]) not in (int, float) or not abs(value[name]) < math.inf
        ]:
            raise HTTPException(422, f"{bad[0]} is not a finite number: send {self._expected()}")
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


def _json(body: bytes, expected: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"the body is not JSON: send {expected}") from error


def _check_encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise HTTPException(422, "the text is not valid Unicode: it has half of a surrogate pair") from error
    return text


async def _form_file(request: Request, body: bytes) -> bytes:
    """The first file or field of a form."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, stream(), max_part_size=len(body) + 1).parse()
        for value in form.values():
            return await value.read() if isinstance(value, UploadFile) else value.encode()
    except (MultiPartException, KeyError, ValueError) as error:
        raise HTTPException(422, "the form cannot be read: send a form with one file") from error
    raise HTTPException(422, "the form is empty: send a form with one file")


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
        # Creates a context for each use: several threads generate at the same time.
        self.autocast = partial(torch.autocast, inference.device.type, torch.bfloat16, enabled=bfloat16)
        self.batcher = Batcher(self._compute, options.max_batch_size, options.batch_timeout)
        self.generating = asyncio.Semaphore(2)  # more at once would slow all of them down
        draws = len(getattr(inference.data, "pixel_mean", ())) == 1
        facts = {"kind": inference.kind, "labels": inference.labels, "token": options.token is not None, "draws": draws}
        page = PAGE.read_text(encoding="utf-8")
        self.html = page.replace("{{facts}}", json.dumps(facts).replace("<", "\\u003c"))

    def app(self) -> Starlette:
        """The ASGI application."""
        endpoint = Route("/predict", self.predict, methods=["POST"])
        if self.inference.kind == "prompt":
            endpoint = Route("/generate", self.generate, methods=["POST"])
        routes = [endpoint, Route("/health", self.health), Route("/", self.page)]
        handlers: Any = {HTTPException: _error_response, Exception: _server_error}
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self.batcher.run())
        yield
        task.cancel()

    async def health(self, request: Request) -> Response:
        """Health check."""
        return PlainTextResponse("ok")

    async def page(self, request: Request) -> Response:
        """The web page to try the model."""
        return HTMLResponse(self.html)

    async def predict(self, request: Request) -> Response:
        """Label and probabilities of an image or a text."""
        value = await self.read(request)
        try:
            async with asyncio.timeout(self.timeout):
                row, note = await self.batcher(value)
        except TimeoutError as error:
            raise HTTPException(504, f"the request took longer than {self.timeout:g} s") from error
        except TooManyError as error:
            raise HTTPException(503, "too many requests are waiting: try again", {"Retry-After": "1"}) from error
        answer = {name: _as_json(one) for name, one in row.items()}
        if note:
            answer["note"] = note
        return JSONResponse(answer)

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
        return list(zip(self.inference.rows(predicted), notes, strict=True))

    async def generate(self, request: Request) -> Response:
        """Stream the continuation of a text."""
        options = await self.read(request)

        async def pieces() -> AsyncIterator[str]:
            async with self.generating:
                async for piece in iterate_in_threadpool(self._generate(options)):
                    yield piece

        return StreamingResponse(pieces(), media_type="text/plain; charset=utf-8")

    def _generate(self, options: dict[str, Any]) -> Iterator[str]:
        tokenizer = self.inference.data.tokenizer
        prompt = torch.from_numpy(tokenizer.encode(options["prompt"]).astype("int64"))
        seed = options["seed"]
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(seed)
        limits = {name: options[name] for name in ("temperature", "top_k", "top_p")}
        task: Any = self.inference.task
        ids = task.generate(prompt, options["max_new_tokens"], **limits, generator=generator)
        pieces = tokenizer.stream(ids)
        while True:
            with self.autocast():  # applies to one thread, and each piece may run in another
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece


def _as_json(value: Any) -> Any:
    """A value of a row; a mask (H, W) becomes a PNG as a data URL."""
    if not isinstance(value, torch.Tensor):
        return value
    file = io.BytesIO()
    Image.fromarray(value.byte().cpu().numpy()).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


async def _error_response(request: Request, error: HTTPException) -> Response:  # noqa: ARG001
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def _server_error(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return JSONResponse({"detail": "internal error: see the log of the server"}, 500)


class _Server(uvicorn.Server):
    """Prints a message when it is ready."""

    def __init__(self, config: uvicorn.Config, message: str) -> None:
        super().__init__(config)
        self.message = message

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self.message, file=sys.stderr, flush=True)


def run_service(options: argparse.Namespace) -> None:
    """Serve until a signal arrives, then finish open requests.

    Raises:
        InputError: the checkpoint or the accelerator cannot be used.
    """
    check_accelerator(options.accelerator)
    inference = Inference(options.ckpt_path, trust=options.trust)
    inference = inference.to(device_of(options.accelerator))
    inference.check_on_sample()
    precision, reason = choose_precision(options.accelerator, options.precision)
    print(f"{inference.path}: precision {precision} ({reason})", file=sys.stderr)
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # PIL refuses images of more than twice this
    service = Service(inference, options, precision == "bf16-mixed")
    config = uvicorn.Config(
        service.app(),
        host=options.host,
        port=options.port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=int(BODY_SECONDS),
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    gc.freeze()  # otherwise garbage collection scans all of torch and delays requests by a quarter of a second
    path = "/generate" if inference.kind == "prompt" else "/predict"
    address = f"http://{'[::1]' if options.host == '::' else options.host}:{options.port}"
    message = f"Serving {address}/ (a page to try it), POST {path}, GET /health; Ctrl-C stops"
    try:
        _Server(config, message).run()
    finally:
        gc.unfreeze()
