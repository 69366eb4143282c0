"""Inputs that come together are computed together."""

import asyncio
import threading
from typing import Any

import pytest

from src.engine.deploy import batcher
from src.engine.deploy.batcher import Batcher, TooManyError


def test_inputs_that_come_together_are_computed_together_and_answered_in_order() -> None:
    seen: list[list[int]] = []

    def double(values: list[int]) -> list[int]:
        seen.append(values)
        return [2 * value for value in values]

    async def ask() -> list[int]:
        batches = Batcher(double, max_size=4, wait=0.05)
        task = asyncio.create_task(batches.run())
        found = await asyncio.gather(*(batches(number) for number in range(10)))
        task.cancel()
        return found

    assert asyncio.run(ask()) == [2 * number for number in range(10)]
    assert [len(one) for one in seen] == [4, 4, 2]


def test_an_error_reaches_all_of_its_batch_and_no_other() -> None:
    def compute(values: list[int]) -> list[int]:
        if 1 in values:
            raise ValueError("not with 1")
        return values

    async def ask() -> list[Any]:
        batches = Batcher(compute, max_size=2, wait=0.01)
        task = asyncio.create_task(batches.run())
        found = await asyncio.gather(*(batches(number) for number in range(4)), return_exceptions=True)
        task.cancel()
        return found

    first, second, *rest = asyncio.run(ask())
    assert isinstance(first, ValueError)
    assert isinstance(second, ValueError)
    assert rest == [2, 3]


def test_who_has_gone_away_does_not_hold_up_the_others() -> None:
    async def ask() -> int:
        batches = Batcher(lambda values: values, max_size=2, wait=0.05)
        gone = asyncio.create_task(batches(1))
        await asyncio.sleep(0)
        gone.cancel()
        task = asyncio.create_task(batches.run())
        answer = await batches(2)
        task.cancel()
        return int(answer)

    assert asyncio.run(ask()) == 2


def test_more_than_can_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "MAX_WAITING", 3)
    held = threading.Event()

    async def ask() -> int:
        batches = Batcher(lambda values: held.wait(10) and values, max_size=1, wait=0)
        task = asyncio.create_task(batches.run())
        first = asyncio.create_task(batches(0))
        await asyncio.sleep(0.05)  # it is being computed
        waiting = [asyncio.create_task(batches(number)) for number in range(1, 4)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyError):
            await batches(9)
        held.set()
        found = await asyncio.gather(first, *waiting)
        task.cancel()
        return len(found)

    assert asyncio.run(ask()) == 4
