"""From requests to scores, whatever they came by. Knows nothing of Ray; a `Backend` scores."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from pydantic import ValidationError

from serve_app.access import Access
from serve_app.answer import score_of
from serve_app.clients import current
from serve_app.errors import RequestError, WholeRequestError, busy, invalid_request
from serve_app.fetch import Allowance
from serve_app.gates import Gate, decided, gate_of
from serve_app.limits import Places, check_images, check_pixels, pixels_of
from serve_app.options import AppConfig
from serve_app.prepare import PreparedSample, check_hosts, fetch_images, parse_sample, prepare_sample
from serve_app.quota import Quotas
from serve_app.schema import Item, ModelFacts, ModelInfo, Problem, Score, ScoreRequest
from vig_ray.dataset.schema import Sample
from vig_ray.model.prompt import Formatter
from vig_ray.scoring.engines import LogProbs
from vig_ray.scoring.prepare import make_passes
from vig_ray.scoring.reference import make_reference

T = TypeVar("T")
U = TypeVar("U")


class Backend(Protocol):
    """What scores."""

    async def score(self, prepared: PreparedSample) -> tuple[LogProbs, LogProbs]:
        """Clean and reference log-probs, float32 [T] each. Raises RequestError."""

    async def facts(self) -> ModelFacts | None:
        """What scores; None while no engine is ready."""

    def record(self, route: str, status: int, seconds: float, under_way: int) -> None:
        """A request was answered."""

    def gated(self, policy: str, key: str, verdict: str) -> None:
        """A policy has decided of a sample; `key`: the name, "" without one."""


class _Entry(NamedTuple):
    """A sample of a request, what was asked for it, its gate, and how many pixels its images have."""

    request: ScoreRequest
    sample: Sample
    gate: Gate | None = None
    pixels: int = 0


class Api:
    """What the routes share."""

    def __init__(self, config: AppConfig, formatter: Formatter, backend: Backend, access: Access | None = None) -> None:
        self.config, self.formatter, self.backend = config, formatter, backend
        self.access = access or Access()
        self.places, self.quotas = Places(config.queue), Quotas(processes=self.access.processes)
        # One thread: tokenizers are not for several at once, other processes take the other cores, and what is decoded
        # at a time is then one sample, even where its request was given up meanwhile.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._tokenizer: Any = formatter.tokenizer
        self._reference = make_reference(config.reference, formatter=formatter, blur=config.blur)
        self._passes = make_passes(("clean", config.reference), formatter, blur=config.blur)

    async def facts(self) -> ModelFacts:
        """What scores. Raises RequestError where nothing is ready yet."""
        facts = await self.backend.facts()
        if facts is None:
            raise busy("the model is being loaded")
        return facts

    async def model_info(self) -> ModelInfo:
        """What scores, and within which limits. Raises RequestError where nothing is ready yet."""
        told_otherwise = {*ModelFacts.model_fields, "max_length"}
        limits = self.config.model_dump(include=set(ModelInfo.model_fields) - told_otherwise)
        return ModelInfo(
            **(await self.facts()).model_dump(),
            **limits,
            reference_parameters=self._reference.parameters,
            max_length=self.formatter.max_length,
        )

    async def score(self, request: ScoreRequest, image: bytes | None) -> Score:
        """One sample; `image`: the file of a form. Raises RequestError."""
        (outcome,) = await self._scores([(request, image)])
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome

    async def score_batch(self, items: Sequence[Any]) -> list[Item]:
        """Several samples, and what is wrong with one in its place. Raises RequestError where it concerns them all."""
        requests: list[tuple[ScoreRequest, None] | RequestError] = []
        for item in items:
            try:
                requests.append((ScoreRequest.model_validate(item), None))
            except ValidationError as error:
                requests.append(invalid_request(error))
        return [
            Item(error=Problem(kind=outcome.kind, message=outcome.message))
            if isinstance(outcome, RequestError)
            else Item(result=outcome)
            for outcome in await self._scores(requests)
        ]

    async def _scores(
        self, requests: Sequence[tuple[ScoreRequest, bytes | None] | RequestError]
    ) -> list[Score | RequestError]:
        """Step by step for all samples, so that the limits of a request are checked before anything is decoded."""
        config = self.config
        entries = await _each(self._entry, requests)
        check_images(sum(len(entry.sample.images) for entry in _good(entries)), config.max_images)
        facts = await self.facts()
        allowance = Allowance(int(config.max_body_mb * 2**20))
        entries = await _each(partial(self._fetched, allowance), entries)
        entries = await _each(self._measured, entries)
        check_pixels(sum(entry.pixels for entry in _good(entries)), config.max_request_pixels)
        return await _each(partial(self._score, facts), entries)

    async def _entry(self, request: tuple[ScoreRequest, bytes | None]) -> _Entry:
        sample = parse_sample(*request)
        check_hosts(sample, self.config.image_hosts)
        return _Entry(request[0], sample, gate_of(request[0], current(), self.access.policies))

    async def _fetched(self, allowance: Allowance, entry: _Entry) -> _Entry:
        return entry._replace(sample=await fetch_images(entry.sample, self.config.image_hosts, allowance))

    async def _measured(self, entry: _Entry) -> _Entry:
        limits = self.config.model_dump(include={"max_image_pixels", "max_decoded_pixels"})
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._thread, partial(pixels_of, entry.sample, **limits))
        return entry._replace(pixels=pixels)

    async def _score(self, facts: ModelFacts, entry: _Entry) -> Score:
        request = entry.request
        prepare = partial(
            prepare_sample,
            entry.sample,
            self.formatter,
            self._passes,
            self.config,
            reference_images=request.reference_images,
        )
        prepared = await asyncio.get_running_loop().run_in_executor(self._thread, prepare)
        self.quotas.spend(current(), prepared.tokens)
        clean, reference = await self.backend.score(prepared)
        taus = entry.gate.policy.tau if entry.gate is not None else None, request.tau, self.config.tau
        score = score_of(
            prepared,
            clean,
            reference,
            tokenizer=self._tokenizer,
            tau=next((tau for tau in taus if tau is not None), None),
            model=facts,
            reference=self._reference,
        )
        if entry.gate is None:
            return score
        score, verdict = decided(score, entry.gate)
        self.backend.gated(entry.gate.name, current().key_name, verdict)
        return score


async def _each(step: Callable[[T], Awaitable[U]], entries: Sequence[T | RequestError]) -> list[U | RequestError]:
    """`step` of each entry, in order; an error takes the place of its entry and stays there.

    Raises WholeRequestError as soon as one comes up; the other steps are then cancelled.
    """

    async def one(entry: T | RequestError) -> U | RequestError:
        if isinstance(entry, RequestError):
            return entry
        try:
            return await step(entry)
        except WholeRequestError:
            raise
        except RequestError as error:
            return error

    tasks = [asyncio.create_task(one(entry)) for entry in entries]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _good(entries: Sequence[T | RequestError]) -> list[T]:
    return [entry for entry in entries if not isinstance(entry, RequestError)]
