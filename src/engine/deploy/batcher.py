"""Combines concurrent requests into batches, and runs blocking work in threads."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any

MAX_WAITING = 1024  # inputs in the queue


class TooManyError(Exception):
    """Too much work is waiting."""


def passable(error: BaseException) -> Exception:
    """The error, or a RuntimeError in place of one that has a meaning of its own for asyncio."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration | TimeoutError):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


class Threads:
    """Threads for blocking work, with a limit on how much of it waits.

    Args:
        count: number of threads.
        limit: maximum total weight of the calls that wait or run.
    """

    def __init__(self, count: int, limit: int) -> None:
        self.pool = ThreadPoolExecutor(count)
        self.free = limit
        self.started: dict[object, float] = {}  # when each running call started

    async def __call__(self, function: Callable[..., Any], *args: Any, weight: int = 1) -> Any:
        """Call a function in a thread.

        Raises:
            TooManyError: too many calls are waiting.
        """
        if self.free < weight:
            raise TooManyError
        self.free -= weight
        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, self._call, function, args)
        finally:
            self.free += weight

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        call = object()
        self.started[call] = time.monotonic()
        try:
            return function(*args)
        except BaseException as error:
            if (other := passable(error)) is error:
                raise
            raise other from error
        finally:
            del self.started[call]

    def longest(self) -> float:
        """For how many seconds the longest call has been running."""
        now = time.monotonic()
        return max((now - start for start in list(self.started.values())), default=0.0)

    def stop(self) -> None:
        """Start nothing more; what runs goes on."""
        self.pool.shutdown(wait=False, cancel_futures=True)


class Batcher:
    """Collects inputs into batches and computes these in a separate thread.

    The next batch is collected while one is computed. If a batch fails, its halves are computed again, so that only the
    inputs that fail on their own get the error.

    Args:
        compute: a list of inputs -> a list of outputs of the same length.
        max_size: maximum number of inputs per batch.
        wait: maximum time that a batch waits for more inputs, in seconds.
    """

    def __init__(self, compute: Callable[[list[Any]], list[Any]], max_size: int, wait: float) -> None:
        self.compute = compute
        self.max_size = max_size
        self.wait = wait
        self.queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue(MAX_WAITING)
        self.futures: set[asyncio.Future[Any]] = set()
        self.has_ended = False
        self.thread = Threads(1, limit=1)

    async def __call__(self, value: Any) -> Any:
        """Add an input to a batch and return its output.

        Raises:
            TooManyError: too many inputs are waiting.
            RuntimeError: `run` has ended.
        """
        if self.has_ended:
            raise RuntimeError("the model has stopped")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            self.queue.put_nowait((value, future))
        except asyncio.QueueFull as error:
            raise TooManyError from error
        self.futures.add(future)
        try:
            return await future
        finally:
            self.futures.discard(future)

    async def run(self) -> None:
        """Compute batches until cancelled; whoever still waits then gets an error."""
        try:
            while True:
                await self._answer(await self._collect())
        finally:
            self.has_ended = True
            self.thread.stop()
            for future in self.futures:
                if not future.done():
                    future.set_exception(RuntimeError("the model has stopped"))

    async def _answer(self, batch: list[tuple[Any, "asyncio.Future[Any]"]]) -> None:
        batch = [(value, future) for value, future in batch if not future.done()]  # some may not wait any more
        if not batch:
            return
        try:
            outputs = await self.thread(self.compute, [value for value, _ in batch])
            if len(outputs) != len(batch):
                raise RuntimeError(f"{len(outputs)} outputs for {len(batch)} inputs")
        except Exception as error:
            if half := len(batch) // 2:
                await self._answer(batch[:half])
                await self._answer(batch[half:])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        for (_, future), output in zip(batch, outputs, strict=True):
            if not future.done():
                future.set_result(output)

    async def _collect(self) -> list[tuple[Any, "asyncio.Future[Any]"]]:
        batch = [await self.queue.get()]
        end = asyncio.get_running_loop().time() + self.wait
        while len(batch) < self.max_size:
            if not self.queue.empty():
                batch.append(self.queue.get_nowait())
                continue
            try:
                async with asyncio.timeout_at(end):
                    batch.append(await self.queue.get())
            except TimeoutError:
                break
        return batch


class Turns:
    """Reads several iterators of text in one thread, a piece of each in turn.

    Args:
        count: maximum number of iterators that are read at the same time.
        limit: maximum number of iterators that are read or waiting.
        context: entered around all reading.
    """

    def __init__(self, count: int, limit: int, context: Callable[[], AbstractContextManager[Any]]) -> None:
        self.count = count
        self.limit = limit
        self.context = context
        self.waiting: deque[Reading] = deque()
        self.running: list[Reading] = []
        self.lock = threading.Lock()  # of `waiting`, `running` and `since`
        self.since: float | None = None  # when the present round started; None: the thread has nothing to do
        self.pool = ThreadPoolExecutor(1)

    async def __call__(self, start: Callable[[], Iterator[str]]) -> AsyncGenerator[str, None]:
        """The text of the iterator that `start` returns in the thread, however slowly it is read.

        Raises:
            TooManyError: too many iterators are waiting.
        """
        one = Reading(start, asyncio.get_running_loop())
        with self.lock:
            if len(self.waiting) + len(self.running) >= self.limit:
                raise TooManyError
            self.waiting.append(one)
            if self.since is None:
                self.since = time.monotonic()
                self.pool.submit(self._read)
        try:
            while not one.has_ended:
                await one.news.wait()
                one.news.clear()
                if piece := one.take():
                    yield piece
            if one.error is not None:
                raise one.error
        finally:
            one.is_wanted = False
            with self.lock, suppress(ValueError):
                self.waiting.remove(one)

    def _read(self) -> None:
        with self.context():
            while True:
                with self.lock:
                    while self.waiting and len(self.running) < self.count:
                        self.running.append(self.waiting.popleft())
                    self.since = time.monotonic() if self.running else None
                    if not self.running:
                        return
                ended = [one for one in self.running if not one.advance()]
                with self.lock:
                    self.running = [one for one in self.running if one not in ended]

    def longest(self) -> float:
        """For how many seconds the present round has been running."""
        since = self.since
        return 0.0 if since is None else time.monotonic() - since

    def stop(self) -> None:
        """Start nothing more; what runs goes on."""
        with self.lock:
            self.waiting.clear()
        self.pool.shutdown(wait=False)


class Reading:
    """An iterator of text, which a thread reads and a coroutine takes.

    `has_ended` and `error`, if any, come after all text.
    """

    def __init__(self, start: Callable[[], Iterator[str]], loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.iterator = self._start(start)
        self.is_wanted = True
        self.unread: list[str] = []
        self.news = asyncio.Event()
        self.has_ended = False
        self.error: Exception | None = None

    def _start(self, start: Callable[[], Iterator[str]]) -> Generator[str, None, None]:
        yield from start()  # in the thread

    def advance(self) -> bool:
        """Read a piece; returns whether there may be more, and somebody who wants it."""
        piece, error = "", None
        try:
            if self.is_wanted:
                piece = next(self.iterator)
            else:
                self.iterator.close()
        except StopIteration:
            self.is_wanted = False
        except BaseException as wrong:
            self.is_wanted, error = False, passable(wrong)
        with suppress(RuntimeError):  # the event loop has ended
            self.loop.call_soon_threadsafe(self._receive, piece, not self.is_wanted, error)
        return self.is_wanted

    def _receive(self, piece: str, has_ended: bool, error: Exception | None) -> None:
        self.unread.append(piece)
        self.has_ended, self.error = has_ended, error
        self.news.set()

    def take(self) -> str:
        """The text that has been read since the last time."""
        text = "".join(self.unread)
        self.unread.clear()
        return text
