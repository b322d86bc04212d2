"""Samples of a program, one at a time, made ready to be sent in a thread: their images are files to be read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from vig_ray.client.answers import Failed
from vig_ray.client.samples import Outgoing, Sample

Samples = Iterable[Sample | Failed] | AsyncIterable[Sample | Failed]
"""Samples, and what has failed before it came to be one, which is its own outcome. One that isn't async is read in a
thread of its own, one sample at a time."""
Prepare = Callable[[Sample | Failed], Outgoing | Failed]

T = TypeVar("T")
_END = None


async def prepared(samples: Samples, prepare: Prepare) -> AsyncIterator[Outgoing | Failed]:
    """Each sample as `prepare` makes it, in order. Raises what `samples` raise."""
    if isinstance(samples, AsyncIterable):
        async for sample in samples:
            yield await asyncio.to_thread(prepare, sample)
        return
    step = partial(_next, iter(samples), prepare)
    while (made := await asyncio.to_thread(step)) is not _END:
        yield made


def _next(samples: Iterator[Sample | Failed], prepare: Prepare) -> Outgoing | Failed | None:
    """The next one, `_END` after the last: StopIteration may not leave a thread."""
    try:
        sample = next(samples)
    except StopIteration:
        return _END
    return prepare(sample)
