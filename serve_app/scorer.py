"""The replica that holds an engine, and what asks it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import logging
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.metrics import Counter, Gauge, Histogram

from serve_app.batching import Batcher
from serve_app.clients import current
from serve_app.errors import ENGINE_DIED, RequestError, busy
from serve_app.gauges import keep_telling
from serve_app.grouping import Grouped
from serve_app.logs import LogFormat, log_here
from serve_app.prepare import PreparedSample
from serve_app.request import current_request
from serve_app.schema import ModelFacts
from vig_ray.model.prompt import PromptError
from vig_ray.scoring.engines import EngineDiedError, LogProbs
from vig_ray.scoring.engines.load import load_engine
from vig_ray.scoring.score import run_passes

log = logging.getLogger("vig_ray.serve")

_ATTEMPTS = 3
_REPLACED_ATTEMPTS, _REPLACED_WAIT_S = 10, 0.2
_BATCH_OF_STEPS = 4  # engine steps' worth of tokens in one batch: enough to sort by length, little to wait for
_CALLS_A_SCORER = 2  # one that its engine works on, and one that waits there meanwhile
_SAMPLES_A_CALL = 32
_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]

Outcome = tuple[LogProbs, LogProbs] | PromptError


class Asked(NamedTuple):
    """A pickled pair of prompts, how many tokens they have together, and whose they are: the client, and its request's
    id."""

    pair: bytes
    tokens: int
    client: str
    request: str


def identity_of(facts: Mapping[str, Any]) -> str:
    """What a model's prompts and numbers hang on, of its facts (`ModelFacts`) as they are before an engine is loaded,
    which describes itself at more length."""
    return json.dumps([facts[name] for name in ("fingerprint", "template", "dtype", "engine", "vllm")], sort_keys=True)


def _outcome(clean: LogProbs | PromptError, reference: LogProbs | PromptError) -> Outcome:
    if isinstance(clean, PromptError):
        return clean
    return reference if isinstance(reference, PromptError) else (clean, reference)


class Scorer:
    """Holds an engine. Where the engine can't go on, the process ends and Ray Serve starts another."""

    def __init__(
        self, facts: dict[str, Any], engine: dict[str, Any], workers: int, log_format: LogFormat = "text"
    ) -> None:
        log_here(log_format)
        self._facts, self._identity = facts, identity_of(facts)
        self._requests: list[str] = []  # whose samples are here
        # Ray gives a process one thread a CPU that it asked for; those of this machine are for all engines on it.
        threads = max(1, (os.cpu_count() or 1) // workers) if engine["device"] == "cpu" else None
        # On a CPU the engine is loaded by the thread that will run it: OpenMP's number of threads is each thread's own,
        # and vLLM's kernels end the process where it isn't what it was.
        thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        load = partial(load_engine, **engine, threads=threads)
        self._engine = thread.submit(load).result() if engine["device"] == "cpu" else load()
        self._facts["engine"] = self._engine.description
        step = engine["batch_tokens"] or (16384 if engine["device"] == "cuda" else 1024)
        self._max_batch_tokens = _BATCH_OF_STEPS * step
        self._batches: Batcher[bytes, Outcome] = Batcher(
            self._run, max_tokens=self._max_batch_tokens, thread=thread, observe=self._observe
        )
        self._samples = Counter("vig_samples", description="Samples scored.")
        self._tokens = Counter("vig_tokens", description="Tokens of prompts scored, both passes.")
        self._fill = Histogram(
            "vig_batch_fill", description="Tokens of a batch by the most it may have.",
            boundaries=[0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0],
        )  # fmt: skip
        self._waiting = Gauge("vig_waiting_samples", description="Samples that no batch has taken yet.")
        keep_telling(self._waiting, self._batches, lambda batches: batches.waiting)

    def _observe(self, samples: int, tokens: int) -> None:
        self._samples.inc(samples)
        self._tokens.inc(tokens)
        self._fill.observe(tokens / self._max_batch_tokens)
        self._waiting.set(self._batches.waiting)

    def _run(self, pairs: Sequence[bytes]) -> list[Outcome]:
        try:
            return [_outcome(*both) for both in run_passes(self._engine, [pickle.loads(pair) for pair in pairs])]
        except Exception as error:
            # The engine, its device or its process may be broken, and what it computes next wrong. Requests that wait
            # here see a lost replica and go to another.
            cause = error if isinstance(error, EngineDiedError) else type(error).__name__
            fields = {"message": f"the engine failed, so this replica ends: {cause}", "request_ids": self._requests}
            log.critical(fields["message"], extra={"event": "engine_failed", "fields": fields})
            os._exit(1)

    async def score(self, asked: Sequence[Asked], identity: str) -> list[tuple[LogProbs, LogProbs] | str] | None:
        """Log-probs of each pair of prompts, or its error as text; None where they are asked of another model than this
        one, by `identity_of` its facts: while a new version takes the place of an old one, both are asked."""
        if identity != self._identity:
            return None
        ids = [each.request for each in asked]
        self._requests += ids
        try:
            outcomes = await asyncio.gather(*(self._batches(each.pair, each.tokens, each.client) for each in asked))
        finally:
            for request in ids:
                self._requests.remove(request)
        return [str(outcome) if isinstance(outcome, PromptError) else outcome for outcome in outcomes]

    async def facts(self, identity: str) -> dict[str, Any] | None:
        """What scores; None where another model is asked for, as in `score`."""
        return self._facts if identity == self._identity else None


def turns_of(multiplexed: Callable[..., Any]) -> type:
    """A deployment's class whose replicas hold several models, as many at a time as Ray Serve's decorator
    `multiplexed` lets them; the one that was asked for the longest ago gives way to another."""

    class Scorers:
        """Scores with the model that a call names as its multiplexed one."""

        def __init__(
            self, engines: dict[str, tuple[dict[str, Any], dict[str, Any]]], workers: int, log_format: LogFormat
        ) -> None:
            self._engines, self._rest = engines, (workers, log_format)

        @multiplexed
        async def _model(self, name: str) -> Scorer:
            return await asyncio.to_thread(self._loaded, name)

        def _loaded(self, name: str) -> Scorer:
            gc.collect()  # the model that gave way is in a ring of references, and there may be no room for two
            facts, engine = self._engines[name]
            return Scorer(dict(facts), engine, *self._rest)

        async def score(self, asked: Sequence[Asked], identity: str) -> list[tuple[LogProbs, LogProbs] | str] | None:
            """See `Scorer.score`."""
            scorer: Scorer = await self._model(serve.get_multiplexed_model_id())
            return await scorer.score(asked, identity)

        async def facts(self, identity: str) -> dict[str, Any] | None:
            """See `Scorer.facts`."""
            scorer: Scorer = await self._model(serve.get_multiplexed_model_id())
            return await scorer.facts(identity)

    return Scorers


class Replicas:
    """The backend of an ingress or entrance: a handle to the scorers, of which there are `scorers` at most.

    `identity`: of the model whose prompts these are (`identity_of`).
    """

    def __init__(self, scorer: Any, *, scorers: int, identity: str) -> None:
        self._scorer, self._identity = scorer, identity
        self._calls: Grouped[Asked, tuple[LogProbs, LogProbs] | str | None] = Grouped(
            self._call, calls=_CALLS_A_SCORER * scorers, most=_SAMPLES_A_CALL
        )
        self._facts: ModelFacts | None = None
        self._asking: asyncio.Task[None] | None = None
        self._requests = Counter("vig_requests", description="Requests answered.", tag_keys=("route", "status"))
        self._latency = Histogram(
            "vig_request_seconds", description="Time to an answer.", boundaries=_SECONDS, tag_keys=("route",)
        )
        self._under_way = Gauge("vig_under_way", description="Samples under way in this process.")
        self._gated = Counter(
            "vig_gated", description="Samples that a policy has judged.", tag_keys=("policy", "key", "verdict")
        )
        self._refusals = Counter(
            "vig_refused", description="Requests answered with an error.", tag_keys=("kind", "status")
        )

    async def _call(self, asked: Sequence[Asked]) -> Sequence[tuple[LogProbs, LogProbs] | str | None]:
        outcomes: Sequence[tuple[LogProbs, LogProbs] | str] | None
        outcomes = await self._scorer.score.remote(list(asked), self._identity)
        return [None] * len(asked) if outcomes is None else outcomes

    async def score(self, prepared: PreparedSample) -> tuple[LogProbs, LogProbs]:
        """See `Backend`. A lost replica's work is given to another: scoring twice does no harm.

        Then each sample goes alone, so that one that ends every engine takes no others with it.
        """
        pair = await asyncio.get_running_loop().run_in_executor(None, pickle.dumps, prepared.pair, 5)
        asked = Asked(pair, prepared.tokens, current().name, current_request().id)
        lost = replaced = 0
        while lost < _ATTEMPTS and replaced < _REPLACED_ATTEMPTS:
            try:
                outcome = await self._calls(asked, asked.client, alone=lost > 0)
            except BackPressureError as error:
                raise busy("every engine has its queue full; try again in a moment") from error
            except DeploymentUnavailableError as error:
                raise busy("no engine is there") from error
            except RayActorError:
                log.warning("an engine was lost while it worked on a sample, which another one gets")
                self._facts = None
                lost += 1
                continue
            except RayError as error:
                raise busy("the engine could not be asked") from error
            if outcome is None:
                self._facts = None
                replaced += 1
                await asyncio.sleep(_REPLACED_WAIT_S)
                continue
            if isinstance(outcome, str):
                kind, _, cause = outcome.partition(": ")
                raise RequestError(422, kind, cause)
            return outcome
        if replaced == _REPLACED_ATTEMPTS:
            raise busy("the model is being replaced by another version; try again in a moment")
        # Of this sample, not of a request with others: the same again would cost the same engines.
        message = f"{_ATTEMPTS} engines were lost while they worked on this sample"
        raise RequestError(503, ENGINE_DIED, message, {"Retry-After": "1"})

    async def facts(self) -> ModelFacts | None:
        """See `Backend`. Asks once, in the background, until an engine has answered."""
        if self._facts is None and (self._asking is None or self._asking.done()):
            # Not as a part of the request that happens to ask first, with which Ray would cancel it.
            self._asking = asyncio.create_task(self._ask(), context=contextvars.Context())
        if self._facts is None and self._asking is not None:
            await asyncio.wait([self._asking], timeout=0.5)
        return self._facts

    async def _ask(self) -> None:
        try:
            facts = await self._scorer.facts.remote(self._identity)
            self._facts = ModelFacts(**facts) if facts is not None else None
        except (RayError, DeploymentUnavailableError, BackPressureError):
            await asyncio.sleep(0.2)

    def record(self, route: str, status: int, seconds: float) -> None:
        """See `Backend`."""
        self._requests.inc(tags={"route": route, "status": str(status)})
        self._latency.observe(seconds, tags={"route": route})

    def watch(self, under_way: Callable[[], int]) -> None:
        """See `Backend`."""
        keep_telling(self._under_way, self, lambda _: under_way())

    def gated(self, policy: str, key: str, verdict: str) -> None:
        """See `Backend`."""
        self._gated.inc(tags={"policy": policy, "key": key, "verdict": verdict})

    def refused(self, kind: str, status: int) -> None:
        """See `Backend`."""
        self._refusals.inc(tags={"kind": kind, "status": str(status)})
