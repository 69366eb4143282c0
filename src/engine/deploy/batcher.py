"""Combines concurrent requests into batches, and runs blocking work in threads."""

import asyncio
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

MAX_WAITING = 1024  # inputs in the queue


class Threads:
    """Threads for blocking work, with a limit on how much of it waits.

    Args:
        count: number of threads.
        limit: maximum total weight of the calls that wait or run.
        start: called first in each thread.
    """

    def __init__(self, count: int, limit: int, start: Callable[[], Any] | None = None) -> None:
        self.pool = ThreadPoolExecutor(count, initializer=start)
        self.free = limit
        self.started: dict[object, float] = {}  # when each running call started

    async def __call__(self, function: Callable[..., Any], *args: Any, weight: int = 1) -> Any:
        """Call a function in a thread; raises asyncio.QueueFull if too many calls are waiting."""
        if self.free < weight:
            raise asyncio.QueueFull
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
            if isinstance(error, Exception) and not isinstance(error, StopIteration | TimeoutError):
                raise
            raise RuntimeError(f"{type(error).__name__}: {error}") from error  # for asyncio it means something else
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
        self.thread = Threads(1, limit=1)

    async def __call__(self, value: Any) -> Any:
        """Add an input to a batch and return its output; raises asyncio.QueueFull if too many inputs are waiting."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((value, future))
        return await future

    async def run(self) -> None:
        """Compute batches until cancelled."""
        while True:
            await self._answer(await self._collect())

    async def _answer(self, batch: list[tuple[Any, "asyncio.Future[Any]"]]) -> None:
        batch = [(value, future) for value, future in batch if not future.done()]  # some may not wait any more
        if not batch:
            return
        try:
            outputs = await self.thread(self.compute, [value for value, _ in batch])
            answers = list(zip(batch, outputs, strict=True))
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # their tensors: a GPU needs the memory for the halves
            if half := len(batch) // 2:
                await self._answer(batch[:half])
                await self._answer(batch[half:])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        for (_, future), output in answers:
            if not future.done():
                future.set_result(output)

    async def _collect(self) -> list[tuple[Any, "asyncio.Future[Any]"]]:
        batch = [await self.queue.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(self.wait):
                while len(batch) < self.max_size:
                    batch.append(await self.queue.get())
        return batch


class RoundRobin:
    """Reads several texts in one thread, a piece of each in turn.

    Args:
        count: maximum number of texts that are read at the same time.
        limit: maximum number of texts that are read or waiting.
        start: called first in the thread.
    """

    def __init__(self, count: int, limit: int, start: Callable[[], Any]) -> None:
        self.thread = Threads(1, limit, start)
        self.places = asyncio.Semaphore(count)
        self.free = limit

    async def __call__(self, pieces: Generator[str, None, None]) -> AsyncGenerator[str, None]:
        """The pieces of a text, made in the thread; raises asyncio.QueueFull if too many texts are waiting."""
        if not self.free:
            raise asyncio.QueueFull
        self.free -= 1
        try:
            async with self.places:
                while (piece := await self.thread(next, pieces, None)) is not None:
                    yield piece
        finally:
            self.free += 1
            with suppress(RuntimeError):  # the thread has been stopped
                self.thread.pool.submit(pieces.close)
