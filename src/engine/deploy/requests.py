"""Reads and checks requests to the service."""

import asyncio
import ctypes
import hmac
import io
import json
import math
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from PIL import Image
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from src.engine.data.images import original_size, reader
from src.engine.deploy.batcher import Threads
from src.engine.deploy.inference import Inference
from src.engine.deploy.prepare import LARGEST, prepare_inputs, table_row

MAX_PIXELS = 50_000_000  # per image; a small file can hold a huge image
LARGE_PIXELS = 2**20  # larger images, and larger bodies, are decoded one at a time: an image can take 1 GB
MAX_RATIO = 100  # of an image's sides: scaling the shorter one would make a huge image
MAX_DECODING = 1024  # small bodies being decoded or waiting
MAX_DECODING_PIXELS = 4 * MAX_PIXELS  # of large images, and bytes of large bodies, being decoded or waiting
MAX_BODIES = 300_000_000  # bytes of all bodies
MAX_TEXT = 100_000  # characters; a tokenizer reads all of a text before it is cut
MAX_TOKENS = 2048  # generated per request
BODY_SECONDS = 15.0  # maximum time for a request body to arrive
SMALL_BODY = 2**15  # bytes; smaller JSON is decoded at once, which is faster than in a thread
Prepared = tuple[Any, str, tuple[int, int]]  # tensors of an image, a note, width and height
# Options of a request to generate text.
DEFAULTS: dict[str, Any] = {"max_new_tokens": 100, "temperature": 0.8, "top_k": None, "top_p": None, "seed": None}


class RequestReader:
    """Reads and checks requests; an invalid request gets a 4xx answer in one line.

    Args:
        inference: the loaded checkpoint.
        token: token that requests must send, ASCII; None: none needed.
        max_bytes: maximum size of the body, in bytes.
    """

    def __init__(self, inference: Inference, token: str | None, max_bytes: int) -> None:
        self.kind = inference.kind
        self.data = inference.data
        self.categories = tuple(getattr(inference.data, "category_columns", ()))
        self.read_image = reader(inference.data)
        self.check_sampling: Any = getattr(inference.task, "check_sampling", None)
        self.token = token
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.small, self.large = Threads(2, MAX_DECODING), Threads(1, MAX_DECODING_PIXELS)

    async def __call__(self, request: Request, deadline: asyncio.Timeout, seconds: float) -> Any:
        """The input in a request; sets the deadline to `seconds` from when the body has arrived.

        Raises:
            HTTPException: the request cannot be used.
            asyncio.QueueFull: too much is being read.
        """
        self._check_token(request.headers.get("authorization", ""))
        async with self._body(request) as body:
            deadline.reschedule(asyncio.get_running_loop().time() + seconds)
            form = request.headers.get("content-type", "")
            form = form if form.partition(";")[0].strip().lower() == "multipart/form-data" else ""
            is_image = self.kind == "image" and not form and not _is_json(body)
            if len(body) < SMALL_BODY and not form and not is_image and self.kind != "file":
                return self._decode(body, form, is_large=False)
            weight = len(body)
            if is_image or weight < LARGE_PIXELS:
                value = await self.small(self._decode, body, form, False)
                if not isinstance(value, int):
                    return value
                weight = value
            return await self.large(self._decode_large, body, form, weight=weight)

    def _check_token(self, header: str) -> None:
        if self.token is None:
            return
        scheme, _, given = header.encode("latin-1").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.token.encode()):
            raise HTTPException(401, "give the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    def _decode_large(self, body: bytearray, form: str) -> Any:
        try:
            return self._decode(body, form, is_large=True)
        finally:  # glibc returns freed memory to the system only if asked: up to 1 GB
            if sys.platform == "linux" and hasattr(c_library := ctypes.CDLL(None), "malloc_trim"):
                c_library.malloc_trim(0)

    def _decode(self, body: bytearray | bytes, form: str, is_large: bool) -> Any:
        """The input in a body; the number of its pixels if it is a large image and `is_large` is False."""
        if form:
            body = asyncio.run(_form_file(form, body))  # in a thread: a large form takes a while
        if not body:
            raise HTTPException(422, f"the body is empty: send {self._expected()}")
        if self.kind == "image" and not _is_json(body):
            return self._image(body, is_large)
        if self.kind == "file":
            return self._file(body)
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HTTPException(422, f"the body is not JSON: send {self._expected()}") from error
        readers = {"image": self._pixels, "text": self._text, "prompt": self._prompt, "table": self._row}
        return readers[self.kind](value)

    def _expected(self) -> str:
        row = {name: "" if name in self.categories else 0 for name in getattr(self.data, "columns", ())}
        return {
            "image": "a PNG or JPEG, or JSON pixels from 0 to 255 as a list of rows",
            "file": f"a file: {', '.join(getattr(self.data, 'file_suffixes', ()))}",
            "text": 'JSON such as {"text": "..."}',
            "prompt": 'JSON such as {"prompt": "...", "max_new_tokens": 100}',
            "table": f"JSON values for all columns: {json.dumps(row)}",
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
                            raise asyncio.QueueFull
            except TimeoutError as error:
                raise HTTPException(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from error
            yield body
        finally:
            self.held_bytes -= len(body)

    def _image(self, body: bytearray | bytes, is_large: bool) -> Prepared | int:
        try:
            with Image.open(io.BytesIO(body), formats=("PNG", "JPEG")) as header:
                width, height = header.size
            pixels = width * height
            is_next = pixels <= (MAX_PIXELS if is_large else LARGE_PIXELS)
            image = self.read_image(io.BytesIO(body)) if is_next else None
        except Exception as error:  # a damaged file raises errors of many types
            raise HTTPException(422, f"not a usable image: it cannot be read; send {self._expected()}") from error
        if pixels > MAX_PIXELS:
            raise HTTPException(422, f"not a usable image: it has too many pixels; give at most {MAX_PIXELS:,}")
        return pixels if image is None else self._prepare(image)

    def _pixels(self, value: Any) -> Prepared:
        value = value.get("pixels") if isinstance(value, dict) else value
        pixels = np.asarray(value, object)  # an array of texts would be as wide as the longest one
        side = math.isqrt(pixels.size)
        if pixels.ndim == 1 and side**2 == pixels.size:
            pixels = pixels.reshape(side, side)
        is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
        is_image = is_image and 0 < pixels.size <= MAX_PIXELS
        if not is_image or not all(type(one) in (int, float) and 0 <= one <= 255 for one in pixels.flat):
            raise HTTPException(422, f"not pixels: send {self._expected()}")
        return self._prepare(Image.fromarray(pixels.astype(float).round().astype(np.uint8)))

    def _prepare(self, value: Any) -> Prepared:
        size = original_size(value) if isinstance(value, Image.Image) else (1, 1)
        if self.kind == "image" and max(size) > MAX_RATIO * min(size):
            raise HTTPException(422, f"not a usable image: one side is more than {MAX_RATIO} times the other")
        tensors, notes = prepare_inputs(self.data, [value])
        return tensors, notes[0], size

    def _file(self, body: bytearray | bytes) -> Prepared:
        try:
            value = self.data.read_file(io.BytesIO(body))
        except (OSError, ValueError) as error:  # others are faults of its code
            raise HTTPException(422, f"not a usable file: {error}; send {self._expected()}") from error
        return self._prepare(value)

    def _row(self, value: Any) -> dict[str, Any]:
        """The values of a table's row, by column."""
        columns = self.data.columns
        if not isinstance(value, dict) or set(value) != set(columns):
            raise HTTPException(422, f"not a row: send {self._expected()}")
        for name in columns:
            types = (str,) if name in self.categories else (int, float)
            if value[name] is not None and type(value[name]) not in types:
                wrong = f"{name} is not a {'text' if name in self.categories else 'number'}"
                raise HTTPException(422, f"{wrong}: send {self._expected()}")
        return table_row(self.data, {name: value[name] for name in columns})

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
        if options["temperature"] is None or options["temperature"] > LARGEST:
            raise HTTPException(422, f"temperature: give a number, at most {LARGEST:.1e}")
        if options["max_new_tokens"] is None or options["max_new_tokens"] > MAX_TOKENS:
            raise HTTPException(422, f"max_new_tokens: give at most {MAX_TOKENS}")
        if options["seed"] is not None and not 0 <= options["seed"] < 2**63:
            raise HTTPException(422, "seed: give 0 or more, below 2**63")
        try:
            if self.check_sampling is None:
                raise ValueError("this model cannot be sampled from: it has no method check_sampling")
            self.check_sampling(options["max_new_tokens"], options["temperature"], options["top_k"], options["top_p"])
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        _check_encodable(options["prompt"])
        return options


def _is_json(body: bytearray | bytes) -> bool:
    return re.match(rb"\s*[\[{]", body) is not None


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
