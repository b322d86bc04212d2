"""The client for programs with an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any
from urllib.parse import urlencode

from pydantic import ValidationError

from vig_ray.client import batches
from vig_ray.client.answers import Failed, ModelInfo, Outcome, Score, score_of
from vig_ray.client.errors import ClientError
from vig_ray.client.feeding import Samples, prepared
from vig_ray.client.requests import Requests
from vig_ray.client.samples import Sample, prepare
from vig_ray.client.stream import Stream

TIMEOUT = 120.0
RETRIES = 8


class AsyncClient:
    """Asks one `vig serve`. To be used by one event loop, in an `async with` block or closed at the end.

    `url`: such as http://localhost:8000. `key`: of a server that was started with --keys. `timeout`: seconds for an
    answer; the server's own limit is --timeout, 60. `retries`: further tries where the server is busy (503, 429, after
    the time that it asks for), a proxy finds none (502, 504), or the connection fails; they take a minute and a half
    together, more where the server asks for it. `batch_items`, `under_way`: samples of a batch, and batches at a time,
    of `score_many`; a server takes 64 samples at a time (--queue) and prepare worker.

    Raises ClientError where the address is wrong.
    """

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
        if batch_items < 1 or under_way < 1:
            raise ClientError("batch_items, under_way: take 1 or more")
        self._requests = Requests(url, key=key, timeout=timeout, retries=retries)
        self._batch_items, self._under_way = batch_items, under_way
        self._info: ModelInfo | None = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._requests.close()

    async def model(self, name: str | None = None, reference: str | None = None) -> ModelInfo:
        """What scores, and within which limits: the model `name` with `reference`, by default the server's first.

        Raises ClientError, also where the server has none of that name.
        """
        asked = {field: value for field, value in (("model", name), ("reference", reference)) if value is not None}
        path = f"/v1/model?{urlencode(asked)}" if asked else "/v1/model"
        answer = await self._requests.json("GET", path)
        try:
            info = ModelInfo.model_validate(answer)
        except ValidationError as error:
            raise ClientError(f"{self._requests.url}/v1/model: answers what vig serve doesn't; is it one?") from error
        for field, name_there in (("model", info.name), ("reference", info.reference)):
            if asked.get(field, name_there) != name_there:  # an earlier server, which reads no query
                message = f"tells only of {name_there}, and {asked[field]} is asked"
                raise ClientError(f"{self._requests.url}/v1/model: {message}")
        self._info = info
        return info

    async def score(self, sample: Sample, tau: float | None = None, *, reference_images: bool = False) -> Score:
        """The score of one sample, which `vig_ray.client.samples` says how to write.

        `tau`: threshold of gain, nats; by default the server's. `reference_images`: answer with those that stand for
        "no image", too. Raises ServerError, with `kind` and `message`, where the sample is refused as well.
        """
        ready = await asyncio.to_thread(prepare, sample, tau=tau, reference_images=reference_images)
        if isinstance(ready, Failed):
            raise ClientError(f"{ready.kind}: {ready.message}")
        answer = await self._requests.json("POST", "/v1/score", ready.body)
        try:
            score = score_of(answer)
        except ValidationError as error:
            raise ClientError(f"{self._requests.url}/v1/score: answers what vig serve doesn't; is it one?") from error
        if not isinstance(score, Score):
            raise ClientError("text_only: the sample has no image and so no score; score_batch tells its tokens")
        return score

    async def score_batch(
        self, samples: Iterable[Sample], tau: float | None = None, *, reference_images: bool = False
    ) -> list[Outcome]:
        """One outcome a sample, in order, by one request: what is wrong with a sample is its own outcome.

        A batch beyond a limit of the server's is asked for in parts. Raises ClientError where no sample is at fault.
        """
        made = prepared(samples, partial(prepare, tau=tau, reference_images=reference_images))
        ready = [each async for each in made]
        return await batches.score_batch(self._requests, ready)

    async def score_many(
        self, samples: Samples, tau: float | None = None, *, reference_images: bool = False
    ) -> AsyncGenerator[Outcome]:
        """One outcome a sample, in order, of any number of samples: in batches within the server's limits, several
        under way. What is wrong with a sample is its own outcome.

        `samples`, if it isn't async, is read in another thread, by `under_way` batches ahead at most. Raises
        ClientError where no sample is at fault; outcomes before it have been yielded.
        """
        info = await self._limits()
        made = prepared(samples, self._prepare(info, tau, reference_images))
        many = batches.score_many(self._requests, made, info, batch_items=self._batch_items, under_way=self._under_way)
        async with aclosing(many):
            async for outcome in many:
                yield outcome

    async def stream(
        self,
        samples: Samples,
        tau: float | None = None,
        *,
        reference_images: bool = False,
        resume: bool = True,
        window: int = 64,
    ) -> AsyncGenerator[Outcome]:
        """One outcome a sample, in order, as soon as it is scored: over one connection that stays open.

        For samples that come slowly, or answers that are wanted at once; `score_many` spreads its batches over several
        prepare workers. At most `window` samples are unanswered at a time; with `resume` they are sent anew over
        another connection where one is cut off, so that nothing is asked for by hand. Raises CutOffError, and
        ClientError as `score_many` does.
        """
        if window < 1:
            raise ClientError("window: takes 1 or more")
        made = prepared(samples, self._prepare(await self._limits(), tau, reference_images))
        async with aclosing(Stream(self._requests, made, resume=resume, window=window).outcomes()) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def _limits(self) -> ModelInfo:
        return self._info or await self.model()

    def _prepare(self, info: ModelInfo, tau: float | None, reference_images: bool) -> Any:
        most = int(info.max_body_mb * 2**20) - len(b'{"items":[]}')
        return partial(prepare, tau=tau, reference_images=reference_images, max_bytes=most)
