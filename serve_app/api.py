"""From requests to scores, whatever they came by. Knows nothing of Ray; a `Backend` scores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from pydantic import ValidationError

import vig_ray
from serve_app.access import Access
from serve_app.answer import score_of, text_only_of
from serve_app.batching import Batcher
from serve_app.clients import current
from serve_app.errors import RequestError, WholeRequestError, busy, invalid_request
from serve_app.fetch import Allowance
from serve_app.gates import Gate, decided, gate_of
from serve_app.key_ring import KeyRing
from serve_app.keys import Key
from serve_app.limits import Places, check_images, check_pixels, check_text, pixels_of
from serve_app.models import Model, named
from serve_app.options import AppConfig
from serve_app.prepare import PreparedSample, check_hosts, fetch_images, parse_sample, prepare_sample
from serve_app.quota import Quotas
from serve_app.schema import Item, Loading, ModelFacts, ModelInfo, Offer, Problem, Score, ScoreRequest, TextOnly
from serve_app.traces import span
from vig_ray.dataset.schema import Sample
from vig_ray.model.prompt import Formatter, Prompt
from vig_ray.scoring.engines import LogProbs

T = TypeVar("T")
U = TypeVar("U")


class Backend(Protocol):
    """What scores."""

    async def score(self, prepared: PreparedSample) -> tuple[LogProbs, LogProbs]:
        """Clean and reference log-probs, float32 [T] each. Raises RequestError."""

    async def facts(self) -> ModelFacts | None:
        """What scores; None while no engine is ready."""

    def record(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""

    def watch(self, under_way: Callable[[], int]) -> None:
        """Called once: `under_way()` is how many samples are under way, whenever that is to be told."""

    def refused(self, kind: str, status: int) -> None:
        """A request was answered with an error."""

    def gated(self, policy: str, key: str, verdict: str) -> None:
        """A policy has decided of a sample; `key`: the name, "" without one."""


class _Entry(NamedTuple):
    """A sample of a request, what was asked for it, its gate, and how many pixels its images have."""

    request: ScoreRequest
    sample: Sample
    model: Model
    reference: str
    gate: Gate | None = None
    pixels: int = 0


class Api:
    """What the routes share. `formatter` and `backend` are the first model's; `others`: those of the other models, by
    name."""

    def __init__(
        self,
        config: AppConfig,
        formatter: Formatter,
        backend: Backend,
        access: Access | None = None,
        others: Mapping[str, tuple[Formatter, Backend]] | None = None,
    ) -> None:
        self.config, self.formatter, self.backend = config, formatter, backend
        self.access = access or Access()
        self.ring: KeyRing | None = None
        """The keys that are taken, where only they are."""
        self.draining = False
        """Whether what comes now is refused, since this server is about to end."""
        self.places, self.quotas = Places(config.queue), Quotas(processes=self.access.processes)
        backend.watch(lambda: self.places.taken)
        self._loading_since: float | None = time.monotonic()
        # One thread: tokenizers are not for several at once, other processes take the other cores, and what is decoded
        # at a time is then one sample, even where its request was given up meanwhile. Clients have it in turn.
        self._prepare: Batcher[Callable[[], Any], Any] = Batcher(
            lambda work: [work[0]()], max_tokens=1, thread=ThreadPoolExecutor(1, thread_name_prefix="prepare")
        )
        first = next(iter(config.models))
        behind = {first: (formatter, backend)} | dict(others or {})
        self._models = {name: Model(name, *behind[name], config) for name in config.models}

    async def facts(self, model: Model | None = None) -> ModelFacts:
        """What scores; of the first model by default. Raises RequestError where nothing is ready yet."""
        facts: ModelFacts | None = await (model.backend if model else self.backend).facts()
        if facts is None:
            raise busy("the model is being loaded")
        return facts

    async def check_key(self, key: Key | None) -> None:
        """Raise RequestError where a key that was taken when a request began isn't any more."""
        if self.ring is not None and key is not None:
            await self.ring.refresh()
            self.ring.check(key)

    def check_open(self) -> None:
        """Raise RequestError where this server is about to end."""
        if self.draining:
            raise busy("this server is stopping")

    async def loading(self) -> Loading | None:
        """What is being loaded, and for how long; None once it answers. Raises RequestError where it will end."""
        self.check_open()
        if await self.backend.facts() is not None:
            self._loading_since = None
            return None
        if self._loading_since is None:  # the engine that was there is lost
            self._loading_since = time.monotonic()
        model = next(iter(self.config.models))
        return Loading(status="loading", model=model, seconds=round(time.monotonic() - self._loading_since, 1))

    async def model_info(self, model: str | None = None, reference: str | None = None) -> ModelInfo:
        """What scores, and within which limits: the model and its reference with these names, by default the first.

        Raises RequestError where there is none of that name, or nothing is ready yet.
        """
        told_otherwise = {*ModelFacts.model_fields, "max_length", "models", "reference", "version"}
        limits = self.config.model_dump(include=set(ModelInfo.model_fields) - told_otherwise)
        asked = self._models[named(self._models, model, "model")]
        reference = named(asked.references, reference, "reference")
        return ModelInfo(
            **(await self.facts(asked)).model_dump(),
            **limits,
            version=vig_ray.__version__,
            models=[Offer(name=each.name, references=list(each.references)) for each in self._models.values()],
            reference=reference,
            reference_parameters=asked.references[reference].reference.parameters,
            max_length=asked.formatter.max_length,
        )

    async def score(self, request: ScoreRequest, image: bytes | None) -> Score | TextOnly:
        """One sample; `image`: the file of a form. Raises RequestError."""
        config = self.config
        entry = await self._entry((request, image))
        check_images(len(entry.sample.images), config.max_images)
        facts = await self.facts(entry.model)
        if any(each.uri is not None for each in entry.sample.images):
            entry = await self._fetched(Allowance(int(config.max_body_mb * 2**20)), entry)
        return await self._score(facts, entry, measure=True)

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
    ) -> list[Score | TextOnly | RequestError]:
        """Step by step for all samples, so that the limits of a request are checked before anything is decoded."""
        config = self.config
        entries = await _each(self._entry, requests)
        check_images(sum(len(entry.sample.images) for entry in _good(entries)), config.max_images)
        await self.facts()
        allowance = Allowance(int(config.max_body_mb * 2**20))
        entries = await _each(partial(self._fetched, allowance), entries)
        entries = await _each(self._measured, entries)
        check_pixels(sum(entry.pixels for entry in _good(entries)), config.max_request_pixels)
        return await _each(self._score_measured, entries)

    async def _entry(self, request: tuple[ScoreRequest, bytes | None]) -> _Entry:
        asked = request[0]
        model = self._models[named(self._models, asked.model, "model")]
        reference = named(model.references, asked.reference, "reference")
        sample = parse_sample(*request)
        check_hosts(sample, self.config.image_hosts)
        return _Entry(asked, sample, model, reference, gate_of(asked, current(), self.access.policies))

    async def _fetched(self, allowance: Allowance, entry: _Entry) -> _Entry:
        return entry._replace(sample=await fetch_images(entry.sample, self.config.image_hosts, allowance))

    async def _measured(self, entry: _Entry) -> _Entry:
        pixels = await self._prepare(partial(self._pixels, entry.sample), 1, current().name)
        return entry._replace(pixels=pixels)

    def _pixels(self, sample: Sample) -> int:
        limits = self.config.max_image_pixels, self.config.max_decoded_pixels
        return pixels_of(sample, max_image_pixels=limits[0], max_decoded_pixels=limits[1])

    def _prepared(self, entry: _Entry, measure: bool) -> PreparedSample | Prompt:
        """In the thread that prepares; `measure`: count the pixels first, which else was done before."""
        if measure:
            check_pixels(self._pixels(entry.sample), self.config.max_request_pixels)
        model, reference = entry.model, entry.reference
        check_text(entry.sample, model.most_text)
        return prepare_sample(
            entry.sample, model.formatter, model.references[reference].passes, self.config,
            reference=reference, reference_images=entry.request.reference_images,
            text_only=entry.request.text_only,
        )  # fmt: skip

    async def _score_measured(self, entry: _Entry) -> Score | TextOnly:
        return await self._score(await self.facts(entry.model), entry)

    async def _score(self, facts: ModelFacts, entry: _Entry, *, measure: bool = False) -> Score | TextOnly:
        request = entry.request
        model = entry.model
        with span("prepare"):
            prepared = await self._prepare(partial(self._prepared, entry, measure), 1, current().name)
        if isinstance(prepared, Prompt):
            return text_only_of(prepared, model=facts)
        self.quotas.spend(current(), prepared.tokens)
        try:
            with span("score"):
                clean, reference = await model.backend.score(prepared)
        except RequestError as refusal:
            if refusal.status == 503:  # the same will be asked for again
                self.quotas.spend(current(), -prepared.tokens)
            raise
        taus = entry.gate.policy.tau if entry.gate is not None else None, request.tau, self.config.tau
        with span("answer"):
            score = score_of(
                prepared,
                clean,
                reference,
                tokenizer=model.tokenizer,
                tau=next((tau for tau in taus if tau is not None), None),
                model=facts,
                reference=model.references[entry.reference].reference,
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
