"""Many samples in batches within a server's limits, several under way, answered in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError

from vig_ray.client.answers import Failed, ModelInfo, Outcome, outcome_of
from vig_ray.client.errors import ClientError, ServerError
from vig_ray.client.requests import Requests
from vig_ray.client.retries import IN_TIME, LATER, TRIES_IN_TIME
from vig_ray.client.samples import Outgoing

PATH = "/v1/score/batch"

_MOST_BYTES = 8 << 20
"""Of a batch of several samples: larger bodies gain nothing, and a server holds all that come to it in memory."""
# Of what was sent, not of who sends it or of the server.
_OF_SAMPLES = frozenset({400, 413, 415, 422})

Batch = Sequence[Outgoing | Failed]


async def score_batch(requests: Requests, batch: Batch) -> list[Outcome]:
    """One outcome a sample, in order; samples that have failed already aren't sent.

    A request that is refused as a whole, or takes too long, is made again in halves: limits of a request are of all of
    its samples together. Raises ClientError where no sample is at fault.
    """
    sent = [sample for sample in batch if isinstance(sample, Outgoing)]
    outcomes = iter(await _answered(requests, sent) if sent else [])
    return [sample if isinstance(sample, Failed) else next(outcomes) for sample in batch]


async def _answered(requests: Requests, sent: Sequence[Outgoing]) -> list[Outcome]:
    body = b'{"items":[' + b",".join(sample.body for sample in sent) + b"]}"
    alone, tries = len(sent) == 1, 0
    while True:
        tries += 1
        try:
            answer = await requests.json("POST", PATH, body, retried=LATER)
            break
        except ServerError as error:
            if error.status not in _OF_SAMPLES | IN_TIME:
                raise
            if not alone:
                half = len(sent) // 2
                return await _answered(requests, sent[:half]) + await _answered(requests, sent[half:])
            if error.status in _OF_SAMPLES:
                return [Failed(error.kind, error.message)]
            wait = requests.retries.wait(tries, error)
            if error.kind == "Timeout" and (wait is None or tries == TRIES_IN_TIME):  # a proxy's is its own
                return [Failed(error.kind, error.message)]
            if wait is None:
                raise
        await asyncio.sleep(wait)
    try:
        outcomes = [outcome_of(item) for item in answer["results"]]
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise ClientError(f"{requests.url}{PATH}: answers what vig serve doesn't; is it one?") from error
    if len(outcomes) != len(sent):
        raise ClientError(f"{requests.url}{PATH}: {len(outcomes)} results for {len(sent)} samples")
    return outcomes


async def score_many(
    requests: Requests, samples: AsyncIterator[Outgoing | Failed], info: ModelInfo, *, batch_items: int, under_way: int
) -> AsyncGenerator[Outcome]:
    """One outcome a sample, in order, as soon as those before it are there.

    At most `under_way` batches of at most `batch_items` samples are read ahead and not yet yielded. What `samples`
    raise is raised after the outcomes of those before it. Raises ClientError where no sample is at fault.
    """
    running: deque[asyncio.Task[list[Outcome]]] = deque()
    async with aclosing(_batches(samples, info, batch_items)) as batches:
        coming: asyncio.Task[Batch | None] | None = _next(batches)
        try:
            while coming is not None or running:
                broken = coming is not None and coming.done() and coming.exception() is not None
                if coming is not None and broken and not running:
                    coming.result()  # raises
                awaited: set[asyncio.Task[Any]] = {running[0]} if running else set()
                if coming is not None and not broken and len(running) < under_way:
                    awaited.add(coming)
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if running and running[0].done():
                    for outcome in running.popleft().result():
                        yield outcome
                elif coming in awaited and coming is not None and coming.done() and coming.exception() is None:
                    batch = coming.result()
                    coming = None if batch is None else _next(batches)
                    if batch is not None:
                        running.append(asyncio.create_task(score_batch(requests, batch)))
        finally:
            await cancelled(*running, *([] if coming is None else [coming]))


def _next(batches: AsyncIterator[Batch]) -> asyncio.Task[Batch | None]:
    async def one() -> Batch | None:
        return await anext(batches, None)

    return asyncio.create_task(one())


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their end; what they raise is dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _batches(
    samples: AsyncIterator[Outgoing | Failed], info: ModelInfo, batch_items: int
) -> AsyncGenerator[Batch]:
    """Samples in lists that are within the server's limits of a batch, and of `batch_items` at most."""
    most = min(batch_items, info.max_items)
    most_bytes = min(_MOST_BYTES, int(info.max_body_mb * 2**20)) - len(b'{"items":[]}')
    batch: list[Outgoing | Failed] = []
    size = images = 0
    try:
        async for sample in samples:
            add = (len(sample.body) + 1, sample.images) if isinstance(sample, Outgoing) else (0, 0)
            if batch and (len(batch) == most or size + add[0] > most_bytes or images + add[1] > info.max_images):
                yield batch
                batch, size, images = [], 0, 0
            batch.append(sample)
            size, images = size + add[0], images + add[1]
    except Exception:  # of the program's own samples: those before it are scored nevertheless
        if batch:
            yield batch
        raise
    if batch:
        yield batch
