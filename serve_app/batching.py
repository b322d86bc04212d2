"""Batches across requests: items that wait when the engine becomes free run together, the oldest first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class _Waiting(NamedTuple, Generic[Argument, Result]):
    item: Argument
    tokens: int
    future: asyncio.Future[Result]


class Batcher(Generic[Argument, Result]):
    """Runs `run` over lists of items in a thread (`thread`, or a new one), one list at a time.

    No item waits for others to come: while the engine is busy they gather by themselves, and while it is idle the first
    one starts it. None overtakes another, so a large one is not passed over. An item whose caller is gone is dropped.
    `observe(items, tokens)` is called for every batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Argument]], Sequence[Result]],
        *,
        max_tokens: int,
        thread: ThreadPoolExecutor | None = None,
        observe: Callable[[int, int], None] | None = None,
    ) -> None:
        self._run, self._max_tokens, self._observe = run, max_tokens, observe
        self._waiting: deque[_Waiting[Argument, Result]] = deque()
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._working: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Items that no batch has taken yet."""
        return len(self._waiting)

    async def __call__(self, item: Argument, tokens: int) -> Result:
        """What `run` returns for `item`; raises what it raises."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(item, tokens, future))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await future

    def _next(self) -> list[_Waiting[Argument, Result]]:
        batch: list[_Waiting[Argument, Result]] = []
        tokens = 0
        while self._waiting:
            first = self._waiting[0]
            if first.future.cancelled():
                self._waiting.popleft()
                continue
            if batch and tokens + first.tokens > self._max_tokens:
                break
            tokens += first.tokens
            batch.append(self._waiting.popleft())
        return batch

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next():
            if self._observe is not None:
                self._observe(len(batch), sum(waiting.tokens for waiting in batch))
            try:
                results = await loop.run_in_executor(self._thread, self._run, [waiting.item for waiting in batch])
            except Exception as error:
                for waiting in batch:
                    if not waiting.future.done():
                        waiting.future.set_exception(error)
                continue
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(result)
