"""Calls that take along what gathers: how much, in which order, and what becomes of errors and of those who leave."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from serve_app.grouping import Grouped


class Called:
    """Notes what each call takes along; calls wait while `gate` is closed."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.gate = asyncio.Event()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.groups.append(list(items))
        await self.gate.wait()
        if 13 in items:
            raise ValueError("thirteen")
        return [10 * item for item in items]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_call_is_no_part_of_the_request_that_came_last() -> None:
    """Ray cancels what was begun in the context of a request with it, and others are in the same call."""
    request: ContextVar[str] = ContextVar("request")
    seen: list[str | None] = []

    async def call(items: Sequence[int]) -> Sequence[int]:
        seen.append(request.get(None))
        return items

    async def main() -> None:
        request.set("mine")
        await Grouped(call, calls=1, most=4)(1)

    asyncio.run(main())
    assert seen == [None]


def test_what_gathers_while_calls_are_under_way_goes_together() -> None:
    async def main() -> None:
        called = Called()
        grouped = Grouped(called, calls=2, most=3)
        asked = [asyncio.create_task(grouped(item)) for item in range(7)]
        await settle()
        assert called.groups == [[0], [1]]  # at once while a call is free; the rest waits
        called.gate.set()
        assert await asyncio.gather(*asked) == [10 * item for item in range(7)]
        assert called.groups == [[0], [1], [2, 3, 4], [5, 6]]

    asyncio.run(main())


def test_clients_take_turns() -> None:
    async def main() -> None:
        called = Called()
        grouped = Grouped(called, calls=1, most=4)
        asked = [asyncio.create_task(grouped(item, "many")) for item in range(6)]
        await settle()
        asked += [asyncio.create_task(grouped(20, "one")), asyncio.create_task(grouped(30, "another"))]
        await settle()
        called.gate.set()
        await asyncio.gather(*asked)
        assert called.groups == [[0], [1, 20, 30, 2], [3, 4, 5]]

    asyncio.run(main())


def test_an_error_reaches_those_of_its_call_and_one_that_goes_alone_takes_no_others() -> None:
    async def main() -> None:
        called = Called()
        called.gate.set()
        grouped = Grouped(called, calls=1, most=8)
        asked = [asyncio.create_task(grouped(item)) for item in (1, 2, 13, 3)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [int, ValueError, ValueError, ValueError]
        assert await asyncio.gather(*(grouped(item, alone=True) for item in (2, 3))) == [20, 30]
        with pytest.raises(ValueError, match="thirteen"):
            await grouped(13, alone=True)
        assert await grouped(4) == 40  # the call that failed is free again

    asyncio.run(main())


def test_who_leaves_before_the_call_is_not_taken_along() -> None:
    async def main() -> None:
        called = Called()
        grouped = Grouped(called, calls=1, most=8)
        asked = [asyncio.create_task(grouped(item)) for item in range(4)]
        await settle()
        asked[2].cancel()
        asked[0].cancel()  # its call goes on, its answer goes nowhere
        called.gate.set()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert called.groups == [[0], [1, 3]]
        assert outcomes[1::2] == [10, 30]

    asyncio.run(main())
