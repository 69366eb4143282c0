"""Inputs that come together are computed together."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Generator
from contextlib import nullcontext
from typing import Any

import pytest

from src.engine.deploy import batcher
from src.engine.deploy.batcher import Batcher, RoundRobin


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


async def outcomes(batches: Batcher, *values: int) -> list[Any]:
    """What each value gets."""
    task = asyncio.create_task(batches.run())
    found = await asyncio.gather(*(batches(value) for value in values), return_exceptions=True)
    task.cancel()
    return found


def test_an_error_reaches_those_who_cause_it_and_no_other() -> None:
    seen: list[list[int]] = []

    def compute(values: list[int]) -> list[int]:
        seen.append(values)
        if {3, 4} & set(values):
            raise ValueError("neither 3 nor 4")
        return values

    found = asyncio.run(outcomes(Batcher(compute, max_size=8, wait=0.05), *range(8)))
    assert [str(one) for one in found] == ["0", "1", "2", *["neither 3 nor 4"] * 2, "5", "6", "7"]
    assert seen[0] == list(range(8))
    assert max(map(len, seen[1:])) == 4  # halves, not one by one


def test_the_halves_of_a_batch_that_failed_have_its_memory() -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def compute(values: list[int]) -> list[int]:
        assert not alive
        if len(values) > 1:
            tensors = threading.Event()  # stands for what a network's `forward` holds
            alive.add(tensors)
            raise RuntimeError("out of memory")
        return values

    assert asyncio.run(outcomes(Batcher(compute, max_size=8, wait=0.05), *range(4))) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), asyncio.CancelledError(), TimeoutError()]
)
def test_no_error_of_the_model_ends_the_batches(error: BaseException) -> None:
    def compute(values: list[int]) -> list[int]:
        if 1 in values:
            raise error
        return values

    found = asyncio.run(outcomes(Batcher(compute, max_size=1, wait=0), 1, 2))
    assert isinstance(found[0], RuntimeError)
    assert type(error).__name__ in str(found[0])
    assert found[1] == 2


@pytest.mark.parametrize("outputs", [[], [1, 2, 3], None])
def test_too_few_or_too_many_outputs_are_an_error_of_the_batch_alone(outputs: Any) -> None:
    found = asyncio.run(outcomes(Batcher(lambda values: outputs if 1 in values else values, max_size=1, wait=0), 1, 2))
    assert isinstance(found[0], Exception)
    assert found[1] == 2


def test_who_has_gone_away_is_not_computed_and_does_not_hold_up_the_others() -> None:
    seen: list[list[int]] = []

    async def ask() -> int:
        batches = Batcher(lambda values: seen.append(values) or values, max_size=2, wait=0.05)  # type: ignore[func-returns-value]
        gone = asyncio.create_task(batches(1))
        await asyncio.sleep(0)
        gone.cancel()
        return int((await outcomes(batches, 2))[0])

    assert asyncio.run(ask()) == 2
    assert seen == [[2]]


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
        with pytest.raises(asyncio.QueueFull):
            await batches(9)
        held.set()
        found = await asyncio.gather(first, *waiting)
        task.cancel()
        return len(found)

    assert asyncio.run(ask()) == 4


async def joined(pieces: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in pieces])


def test_texts_take_turns_and_more_than_can_be_read_wait() -> None:
    order: list[str] = []
    all_asked = threading.Event()

    def spelled(word: str) -> Generator[str, None, None]:
        all_asked.wait(10)
        for letter in word:
            order.append(letter)
            yield letter

    async def ask() -> list[str]:
        turns = RoundRobin(2, 3, nullcontext)
        texts = [turns(spelled(word)) for word in ("aaa", "bb", "cc")]
        asyncio.get_running_loop().call_later(0.05, all_asked.set)
        found = await asyncio.gather(*map(joined, texts))
        turns.thread.stop()
        return found

    assert asyncio.run(ask()) == ["aaa", "bb", "cc"]
    assert "".join(order) in ("aababcc", "ababacc")  # the first may be a turn ahead; the third waits for a place


@pytest.mark.parametrize("error", [ValueError("oh"), TimeoutError("oh"), SystemExit("oh")])
def test_an_error_of_a_text_ends_this_text_only(error: BaseException) -> None:
    def broken() -> Generator[str, None, None]:
        yield "a"
        raise error

    async def ask() -> list[Any]:
        turns = RoundRobin(2, 2, nullcontext)
        texts = joined(turns(broken())), joined(turns(letter for letter in "bbb"))
        found = await asyncio.gather(*texts, return_exceptions=True)
        turns.thread.stop()
        turns.thread.pool.shutdown()  # waits: the thread tells of a text's end shortly before its own
        assert turns.thread.longest() == 0
        return found

    found = asyncio.run(ask())
    assert isinstance(found[0], ValueError if isinstance(error, ValueError) else RuntimeError)
    assert "oh" in str(found[0])
    assert found[1] == "bbb"
