"""Rows whose images are fetched, many at a time, and come out in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
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
    """What became of a row: its key and, where it can be told, its id; its sample, or why there is none; what is kept
    of it; and whether its images were given their marks."""

    key: str
    id: str | None
    sample: Sample | RowError
    kept: Mapping[str, str]
    marked: bool = False


class _Waiting(NamedTuple):
    outcome: Outcome
    size: int
    images: dict[int, Future[str]]  # by their places in the row

    @property
    def done(self) -> bool:
        return all(image.done() for image in self.images.values())


class Fetching:
    """Takes what became of rows, fetches their images into a cache, and hands the rows on in the same order; for use in
    a `with` statement. Images that are fetched: `auto`, those at URLs that have a checksum; `always`, all at URLs.

    An image that can't be had makes its row a RowError. `hand_on` is called in the caller's thread, for all rows by the
    end. Raises StageError where the cache can't be read or written.
    """

    def __init__(self, fetch: Fetch, options: FetchOptions, hand_on: Callable[[Outcome], None]) -> None:
        self._fetch, self._options, self._hand_on = fetch, options, hand_on
        self._fetcher: Fetcher | None = None
        self._waiting: deque[_Waiting] = deque()
        self._size = 0

    def __enter__(self) -> Fetching:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is on its way; after an error it is given up."""
        try:
            while self._waiting and error is None:
                self._first_on()
        finally:
            if self._fetcher is not None:
                self._fetcher.__exit__(kind, error, trace)

    def add(self, outcome: Outcome) -> None:
        """Take one row. It is handed on now or later; not more of them wait than memory is meant for."""
        wanted = _wanted(outcome.sample, self._fetch)
        if not self._waiting and not wanted:
            self._hand_on(outcome)
            return
        asked = {place: self._asked(image) for place, image in wanted}
        self._waiting.append(_Waiting(outcome, _size(outcome.sample), asked))
        self._size += self._waiting[-1].size
        while self._waiting and (self._waiting[0].done or len(self._waiting) > _ROWS or self._size > _BYTES):
            self._first_on()

    def _asked(self, image: Image) -> Future[str]:
        if self._fetcher is None:
            from vig_ray.dataset.fetch import Fetcher  # few datasets need it

            self._fetcher = Fetcher(self._options).__enter__()
        return self._fetcher.ask(image.uri or "", image.sha256)

    def _first_on(self) -> None:
        row = self._waiting.popleft()
        self._size -= row.size
        self._hand_on(_with_images(row))


def _wanted(sample: Sample | RowError, fetch: Fetch) -> list[tuple[int, Image]]:
    """The images of a row that are to be fetched, with their places."""
    if isinstance(sample, RowError) or fetch == "never":
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
