"""What is known of the request that is being answered, wherever it is on its way: for logs and traces."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol


class _Counted(Protocol):
    @property
    def samples(self) -> int: ...


@dataclass
class CurrentRequest:
    """`id`: the request id. `place`: what holds the number of its samples, None until they are known. `error`: the kind
    of the error that it is answered with. `tracer`: what records its spans, None where no traces are sent."""

    id: str = ""
    place: _Counted | None = None
    error: str | None = None
    tracer: Any = None

    @property
    def samples(self) -> int:
        """How many samples it has; 0 where it was refused before that was known."""
        return self.place.samples if self.place is not None else 0


_CURRENT: ContextVar[CurrentRequest | None] = ContextVar("current_request", default=None)


def begin(request: CurrentRequest) -> None:
    """Make it the current one for this task, and for those that it starts."""
    _CURRENT.set(request)


def current_request() -> CurrentRequest:
    """The one that this task works on; outside of a request a new one, which nobody reads."""
    return _CURRENT.get() or CurrentRequest()
