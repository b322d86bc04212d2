"""Calls to another process that take along what has gathered meanwhile."""

from __future__ import annotations

import asyncio
import contextvars
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class _Waiting(NamedTuple, Generic[Argument, Result]):
    item: Argument
    future: asyncio.Future[Result]


class Grouped(Generic[Argument, Result]):
    """Gives items to `call`, which takes a list and returns a list, at most `calls` at a time and `most` items each.

    A call to another process costs milliseconds, whatever it takes along. While fewer than `calls` are under way an
    item goes at once and alone. While all are, items gather, and the next call takes them, one of each client in turn,
    its oldest. So nobody waits for others to come, and the cost of a call is shared out where there are many. An item
    whose caller has gone is dropped unless it is under way. What a call raises, each of its items raises.
    """

    def __init__(
        self, call: Callable[[Sequence[Argument]], Awaitable[Sequence[Result]]], *, calls: int, most: int
    ) -> None:
        self._call, self._free, self._most = call, calls, most
        # The client whose turn it is comes first.
        self._waiting: OrderedDict[str, deque[_Waiting[Argument, Result]]] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, item: Argument, client: str = "", *, alone: bool = False) -> Result:
        """What `call` returns for `item`; raises what it raises.

        `client`: whose turn it takes. `alone`: at once, and in a call of its own.
        """
        if alone:
            (result,) = await self._call([item])
            return result
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(_Waiting(item, future))
        self._start()
        return await future

    def _start(self) -> None:
        while self._free > 0 and (group := self._next()):
            self._free -= 1
            # Not in the context of who came last: where that request is cancelled, Ray cancels what was begun in it.
            task = asyncio.get_running_loop().create_task(self._run(group), context=contextvars.Context())
            self._tasks.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(self._tasks.discard)

    def _next(self) -> list[_Waiting[Argument, Result]]:
        group: list[_Waiting[Argument, Result]] = []
        while self._waiting and len(group) < self._most:
            client, items = next(iter(self._waiting.items()))
            waiting = items.popleft()
            if not waiting.future.done():  # else its caller has gone
                group.append(waiting)
                self._waiting.move_to_end(client)
            if not items:
                del self._waiting[client]
        return group

    async def _run(self, group: Sequence[_Waiting[Argument, Result]]) -> None:
        try:
            results = await self._call([waiting.item for waiting in group])
        except BaseException as error:
            for waiting in group:
                if not waiting.future.done():
                    waiting.future.set_exception(
                        error if isinstance(error, Exception) else RuntimeError("the call was cancelled")
                    )
            if not isinstance(error, Exception):
                raise
        else:
            for waiting, result in zip(group, results, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(result)
        finally:
            self._free += 1
            self._start()
