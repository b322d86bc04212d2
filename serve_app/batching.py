"""Batches across requests: items that wait when the engine becomes free run together, the clients in turn."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
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
    one starts it. Clients give one item each in turn, their oldest, so that an item waits for one of each other client
    at most before each older one of its own. Nothing overtakes an item whose turn it is: where that doesn't fit into
    the batch any more the batch ends, so a large one is not passed over. An item whose caller is gone is dropped.
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
        # The client whose turn it is comes first.
        self._waiting: OrderedDict[str, deque[_Waiting[Argument, Result]]] = OrderedDict()
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._working: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Items that no batch has taken yet."""
        return sum(map(len, self._waiting.values()))

    async def __call__(self, item: Argument, tokens: int, client: str = "") -> Result:
        """What `run` returns for `item`; raises what it raises. `client`: whose turn it takes."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(_Waiting(item, tokens, future))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await future

    def _next(self) -> list[_Waiting[Argument, Result]]:
        batch: list[_Waiting[Argument, Result]] = []
        tokens = 0
        while self._waiting:
            client, items = next(iter(self._waiting.items()))
            first = items[0]
            if not first.future.cancelled():
                if batch and tokens + first.tokens > self._max_tokens:
                    break
                tokens += first.tokens
                batch.append(first)
                self._waiting.move_to_end(client)
            items.popleft()
            if not items:
                del self._waiting[client]
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
