"""Rows whose images are fetched, many at a time, and come out in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal, NamedTuple

from vig_ray.dataset.fetch_cache import FetchOptions
from vig_ray.dataset.schema import Image, RowError, Sample
from vig_ray.storage import scheme_of

if TYPE_CHECKING:
    from vig_ray.dataset.fetch import Fetcher

Fetch = Literal["auto", "always", "never"]

_ROWS = 4096  # that are on their way at a time, and their bytes:
_BYTES = 32 << 20


class Outcome(NamedTuple):
    """What became of a row: its key and, where it can be told, its id; its sample, or why there is none."""

    key: str
    id: str | None
    sample: Sample | RowError


class _Waiting(NamedTuple):
    outcome: Outcome
    size: int
    images: dict[int, Future[str]]  # by their places in the row

    @property
    def done(self) -> bool:
        return all(image.done() for image in self.images.values())


def fetched(outcomes: Iterable[Outcome], fetch: Fetch, options: FetchOptions) -> Generator[Outcome]:
    """The same outcomes in the same order, with the images that are at URLs in a cache: `auto`, those that have a
    checksum; `always`, all. An image that can't be had makes its row a RowError."""
    if fetch == "never":
        yield from outcomes
        return
    waiting: deque[_Waiting] = deque()
    size = 0
    with ExitStack() as stack:
        fetcher: Fetcher | None = None
        for outcome in outcomes:
            wanted = _wanted(outcome.sample, fetch)
            if wanted and fetcher is None:
                from vig_ray.dataset.fetch import Fetcher  # few datasets need it

                fetcher = stack.enter_context(Fetcher(options))
            if not waiting and not wanted:
                yield outcome
                continue
            asked = {place: fetcher.ask(image.uri or "", image.sha256) for place, image in wanted} if fetcher else {}
            waiting.append(_Waiting(outcome, _size(outcome.sample), asked))
            size += waiting[-1].size
            while waiting and (waiting[0].done or len(waiting) > _ROWS or size > _BYTES):
                size -= waiting[0].size
                yield _with_images(waiting.popleft())
        while waiting:
            yield _with_images(waiting.popleft())


def _wanted(sample: Sample | RowError, fetch: Fetch) -> list[tuple[int, Image]]:
    """The images of a row that are to be fetched, with their places."""
    if isinstance(sample, RowError):
        return []
    return [
        (place, image)
        for place, image in enumerate(sample.images)
        if scheme_of(image.uri or "") in ("http", "https") and (fetch == "always" or image.sha256 is not None)
    ]


def _size(sample: Sample | RowError) -> int:
    if isinstance(sample, RowError):
        return 0
    return sum(len(turn.text) for turn in sample.conversation) + sum(len(image.bytes or b"") for image in sample.images)


def _with_images(row: _Waiting) -> Outcome:
    """A row once all its images are there, or one of them can't be."""
    if isinstance(row.outcome.sample, RowError):
        return row.outcome
    images = list(row.outcome.sample.images)
    for place, future in row.images.items():
        try:
            images[place] = Image(uri=future.result())
        except RowError as error:
            return row.outcome._replace(sample=error)
    return row.outcome._replace(sample=row.outcome.sample._replace(images=tuple(images)))
