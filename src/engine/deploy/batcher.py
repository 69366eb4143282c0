"""Combines concurrent requests into batches, and runs blocking work in threads."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MAX_WAITING = 1024  # inputs in the queue


class TooManyError(Exception):
    """Too much work is waiting."""


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
            if isinstance(error, Exception) and not isinstance(error, StopIteration | TimeoutError):
                raise
            # asyncio cannot pass these on, or they would end the event loop, or be taken for the service's own.
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
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
