"""Batches across requests: what waits when the engine is free goes together, oldest first, up to a number of tokens."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

Given = TypeVar("Given")
Found = TypeVar("Found")


class _Waiting(NamedTuple, Generic[Given, Found]):
    item: Given
    tokens: int
    found: asyncio.Future[Found]


class Batcher(Generic[Given, Found]):
    """Runs `run` over lists of items in a thread, `thread` or one of its own, one list at a time.

    No item waits for others to come: while the engine is busy they gather by themselves, and while it is idle the first
    one starts it. None overtakes another, so a large one is not passed over. An item whose caller is gone is dropped.
    `observe(samples, tokens)` is told of every batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Given]], Sequence[Found]],
        *,
        most_tokens: int,
        thread: ThreadPoolExecutor | None = None,
        observe: Callable[[int, int], None] | None = None,
    ) -> None:
        self._run, self._most, self._observe = run, most_tokens, observe
        self._waiting: deque[_Waiting[Given, Found]] = deque()
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._working: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Items that no batch has taken yet."""
        return len(self._waiting)

    async def __call__(self, item: Given, tokens: int) -> Found:
        """What `run` finds for `item`; raises what it raises."""
        found: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(item, tokens, found))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await found

    def _next(self) -> list[_Waiting[Given, Found]]:
        batch: list[_Waiting[Given, Found]] = []
        tokens = 0
        while self._waiting:
            first = self._waiting[0]
            if first.found.cancelled():
                self._waiting.popleft()
                continue
            if batch and tokens + first.tokens > self._most:
                break
            tokens += first.tokens
            batch.append(self._waiting.popleft())
        return batch

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next():
            if self._observe is not None:
                self._observe(len(batch), sum(each.tokens for each in batch))
            try:
                results = await loop.run_in_executor(self._thread, self._run, [each.item for each in batch])
            except Exception as error:
                for each in batch:
                    if not each.found.done():
                        each.found.set_exception(error)
                continue
            for each, result in zip(batch, results, strict=True):
                if not each.found.done():
                    each.found.set_result(result)
