"""The client for programs without an event loop: the other one, on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from vig_ray.client.answers import ModelInfo, Outcome, Score
from vig_ray.client.asynchronous import RETRIES, TIMEOUT, AsyncClient
from vig_ray.client.batches import cancelled
from vig_ray.client.errors import ClientError
from vig_ray.client.feeding import Samples
from vig_ray.client.samples import Sample

T = TypeVar("T")


class Client:
    """As `AsyncClient`, whose arguments it takes, for use in a `with` block or closed at the end. Any thread may call
    it."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        batch_items: int = 16,
        under_way: int = 4,
    ) -> None:
        self._client = AsyncClient(
            url, key=key, timeout=timeout, retries=retries, batch_items=batch_items, under_way=under_way
        )
        self._closing, self._closed = threading.Lock(), False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vig client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections and end its thread; calls of other threads that are under way raise ClientError. A
        second time does nothing."""
        with self._closing:
            if self._closed:
                return
            self._closed = True  # from now on nothing is begun
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        await cancelled(*(asyncio.all_tasks() - {asyncio.current_task()}))
        await self._loop.shutdown_asyncgens()
        await self._client.close()

    def model(self, name: str | None = None, reference: str | None = None) -> ModelInfo:
        """See `AsyncClient.model`."""
        return self._wait(self._client.model(name, reference))

    def score(self, sample: Sample, tau: float | None = None, *, reference_images: bool = False) -> Score:
        """See `AsyncClient.score`."""
        return self._wait(self._client.score(sample, tau, reference_images=reference_images))

    def score_batch(
        self, samples: Iterable[Sample], tau: float | None = None, *, reference_images: bool = False
    ) -> list[Outcome]:
        """See `AsyncClient.score_batch`."""
        return self._wait(self._client.score_batch(samples, tau, reference_images=reference_images))

    def score_many(
        self, samples: Samples, tau: float | None = None, *, reference_images: bool = False
    ) -> Iterator[Outcome]:
        """See `AsyncClient.score_many`."""
        return self._each(self._client.score_many(samples, tau, reference_images=reference_images))

    def stream(
        self,
        samples: Samples,
        tau: float | None = None,
        *,
        reference_images: bool = False,
        resume: bool = True,
        window: int = 64,
    ) -> Iterator[Outcome]:
        """See `AsyncClient.stream`."""
        return self._each(
            self._client.stream(samples, tau, reference_images=reference_images, resume=resume, window=window)
        )

    def _each(self, outcomes: AsyncGenerator[Outcome]) -> Iterator[Outcome]:
        running: set[asyncio.Task[Any]] = set()

        async def one() -> Outcome | None:
            running.update({task} if (task := asyncio.current_task()) else ())
            try:
                return await anext(outcomes, None)
            finally:
                running.clear()

        async def end() -> None:
            await cancelled(*running)  # an interrupt leaves it in the middle of an outcome
            await outcomes.aclose()

        try:
            while (outcome := self._wait(one())) is not None:
                yield outcome
        finally:
            if threading.current_thread() is self._thread:  # an iterator that was left, collected there
                self._begin(end())
            elif not self._closed:
                self._wait(end())

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns, on the loop; an interrupt ends it there, too."""
        future = self._begin(coroutine)
        try:
            return future.result()
        except BaseException as error:
            future.cancel()
            if isinstance(error, CancelledError) and self._closed:
                raise ClientError("the client was closed meanwhile") from error
            raise

    def _begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Raises ClientError where the client is closed."""
        with self._closing:
            if self._closed:
                coroutine.close()
                raise ClientError("the client is closed")
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
