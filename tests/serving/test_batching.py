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


def batches_of(waiting: Sequence[tuple[str, str, int]], *, max_tokens: int) -> list[list[str]]:
    """The batches of items (item, client, tokens) that came while the engine worked on another one."""
    gate, batches = threading.Event(), []

    def run(items: Sequence[str]) -> list[str]:
        batches.append(list(items))
        gate.wait()
        return list(items)

    async def main() -> None:
        batcher: Batcher[str, str] = Batcher(run, max_tokens=max_tokens)
        tasks = [asyncio.create_task(batcher("before", 1))]
        await until(lambda: batches == [["before"]])
        tasks += [asyncio.create_task(batcher(item, tokens, client)) for item, client, tokens in waiting]
        await until(lambda: batcher.waiting == len(waiting))
        gate.set()
        assert await asyncio.gather(*tasks) == ["before", *(item for item, _, _ in waiting)]
        assert batcher.waiting == 0

    asyncio.run(main())
    return batches[1:]


def test_clients_take_turns_and_each_ones_items_keep_their_order() -> None:
    many = [(f"a{number}", "a", 1) for number in range(6)]
    few = [("b0", "b", 1), ("b1", "b", 1), ("c0", "c", 1)]
    assert batches_of([*many, *few], max_tokens=3) == [["a0", "b0", "c0"], ["a1", "b1", "a2"], ["a3", "a4", "a5"]]


def test_a_large_item_is_not_passed_over_by_the_small_ones_of_others() -> None:
    small = [(f"a{number}", "a", 1) for number in range(20)]
    batches = batches_of([*small[:1], ("large", "b", 9), *small[1:]], max_tokens=10)
    assert batches[0] == ["a0", "large"]
    batches = batches_of([*small, ("too large", "b", 99)], max_tokens=10)
    assert batches[:3] == [["a0"], ["too large"], [f"a{number}" for number in range(1, 11)]]
