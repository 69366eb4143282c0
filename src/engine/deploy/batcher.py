"""Combines concurrent requests into batches."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MAX_WAITING = 1024  # inputs in the queue


class TooManyError(Exception):
    """Too many inputs are waiting."""


class Batcher:
    """Collects inputs into batches and computes these in a separate thread.

    The next batch is collected while one is computed.

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

    async def __call__(self, value: Any) -> Any:
        """Add an input to a batch and return its output.

        Raises:
            TooManyError: too many inputs are waiting.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            self.queue.put_nowait((value, future))
        except asyncio.QueueFull as error:
            raise TooManyError(f"{self.queue.maxsize} inputs are waiting") from error
        return await future

    async def run(self) -> None:
        """Compute batches until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as thread:
            while True:
                batch = await self._collect()
                try:
                    outputs = await loop.run_in_executor(thread, self.compute, [value for value, _ in batch])
                except Exception as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), output in zip(batch, outputs, strict=True):
                    if not future.done():  # the caller may have been cancelled
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
