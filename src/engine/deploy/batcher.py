"""Computes together what is asked at the same time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MAX_WAITING = 1024  # inputs


class TooManyError(Exception):
    """Too many inputs are waiting."""


class Batcher:
    """Gathers what is asked at the same time, and computes it together in a thread of its own.

    While one batch is computed, the next one gathers.

    Args:
        compute: a list of inputs -> a list of outputs, as many.
        max_size: inputs of a batch.
        wait: seconds that a batch which is not full waits for more.
    """

    def __init__(self, compute: Callable[[list[Any]], list[Any]], max_size: int, wait: float) -> None:
        self.compute = compute
        self.max_size = max_size
        self.wait = wait
        self.queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue(MAX_WAITING)

    async def __call__(self, value: Any) -> Any:
        """The output of an input.

        Raises:
            TooManyError: too many are waiting.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            self.queue.put_nowait((value, future))
        except asyncio.QueueFull as error:
            raise TooManyError(f"{self.queue.maxsize} are waiting") from error
        return await future

    async def run(self) -> None:
        """Compute what is asked, until this is cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as thread:
            while True:
                batch = await self._gather()
                try:
                    outputs = await loop.run_in_executor(thread, self.compute, [value for value, _ in batch])
                except Exception as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), output in zip(batch, outputs, strict=True):
                    if not future.done():  # whoever asked may be gone
                        future.set_result(output)

    async def _gather(self) -> list[tuple[Any, "asyncio.Future[Any]"]]:
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
