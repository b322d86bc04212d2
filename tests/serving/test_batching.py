"""Batches across requests: who goes with whom, and what becomes of those who leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from serve_app.batching import Batcher


async def until(what: Callable[[], bool]) -> None:
    """Let others run until `what` holds; pytest's time limit ends what never does."""
    while not what():
        await asyncio.sleep(0.001)


def test_what_gathers_while_the_engine_works_goes_together_in_order() -> None:
    gate, batches = threading.Event(), []

    def run(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        gate.wait()
        return [10 * item for item in items]

    async def main() -> list[int]:
        batcher = Batcher(run, max_tokens=10)
        first = asyncio.create_task(batcher(0, 3))
        await until(lambda: batches == [[0]])
        # 4 + 4 fit; 5 doesn't, and 1 after it must not overtake; 99 goes alone.
        others = [
            asyncio.create_task(batcher(item, tokens)) for item, tokens in ((1, 4), (2, 4), (3, 5), (4, 1), (5, 99))
        ]
        await until(lambda: batcher.waiting == 5)
        gate.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(main()) == [0, 10, 20, 30, 40, 50]
    assert batches == [[0], [1, 2], [3, 4], [5]]


def test_who_is_gone_is_not_worked_for() -> None:
    gate, seen = threading.Event(), []

    def run(items: Sequence[int]) -> list[int]:
        seen.extend(items)
        gate.wait()
        return list(items)

    async def main() -> None:
        batcher = Batcher(run, max_tokens=100)
        first = asyncio.create_task(batcher(0, 1))
        await until(lambda: seen == [0])
        gone, stays = asyncio.create_task(batcher(1, 1)), asyncio.create_task(batcher(2, 1))
        await until(lambda: batcher.waiting == 2)
        gone.cancel()
        first.cancel()  # its work goes on, its answer goes nowhere
        gate.set()
        assert await stays == 2
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(main())
    assert seen == [0, 2]


def test_an_error_reaches_those_of_its_batch_and_no_others() -> None:
    def run(items: Sequence[int]) -> list[int]:
        if 1 in items:
            raise ValueError("no")
        return list(items)

    async def main() -> None:
        batcher = Batcher(run, max_tokens=1)
        outcomes = await asyncio.gather(*(batcher(item, 1) for item in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [int, ValueError, int]
        assert await batcher(7, 1) == 7

    asyncio.run(main())
