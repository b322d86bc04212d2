"""The Ray Serve application: `serve run serve_app.app:build model=DIR`.

    proxy ──▶ Ingress (CPU: checks, decodes, blurs, tokenises) ──▶ Scorer (the engine; batches across requests)

Both scale by themselves with the load, within `prepare_workers` and `workers`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.metrics import Counter, Gauge, Histogram

from serve_app.access import Access, read_access
from serve_app.api import Api
from serve_app.batching import Batcher
from serve_app.clients import current
from serve_app.errors import RequestError, busy
from serve_app.options import AppConfig
from serve_app.prepare import PreparedSample
from serve_app.routes import make_app
from serve_app.schema import ModelFacts
from vig_ray.cluster import parse_range
from vig_ray.compat.ray import asgi_ingress
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import fingerprint
from vig_ray.model.load import default_dtype, load_formatter, prompts_of, template_fingerprint
from vig_ray.model.prompt import PromptError
from vig_ray.scoring.engines import EngineDiedError, LogProbs
from vig_ray.scoring.engines.load import check_engine, choose_engine, engine_for, gpus_an_engine, load_engine
from vig_ray.scoring.reference import make_reference
from vig_ray.scoring.score import run_passes

log = logging.getLogger("vig_ray.serve")

_ATTEMPTS = 3
_BATCH_OF_STEPS = 4  # engine steps' worth of tokens in one batch: enough to sort by length, little to wait for
_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]

Outcome = tuple[LogProbs, LogProbs] | PromptError


def _outcome(clean: LogProbs | PromptError, reference: LogProbs | PromptError) -> Outcome:
    if isinstance(clean, PromptError):
        return clean
    return reference if isinstance(reference, PromptError) else (clean, reference)


class Scorer:
    """Holds an engine. Where the engine can't go on, the process ends and Ray Serve starts another."""

    def __init__(self, facts: dict[str, str], engine: dict[str, Any], workers: int) -> None:
        self._facts = facts
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
            log.critical("the engine failed, so this replica ends: %s", cause)
            os._exit(1)

    async def score(self, pair: bytes, tokens: int, client: str) -> tuple[LogProbs, LogProbs] | str:
        """Log-probs of a pickled pair of prompts, or the error as text."""
        outcome = await self._batches(pair, tokens, client)
        return str(outcome) if isinstance(outcome, PromptError) else outcome

    async def facts(self) -> dict[str, str]:
        """What scores."""
        return self._facts


class Replicas:
    """The backend of an ingress: a handle to the scorers."""

    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer
        self._facts: ModelFacts | None = None
        self._asking: asyncio.Task[None] | None = None
        self._requests = Counter("vig_requests", description="Requests answered.", tag_keys=("route", "status"))
        self._latency = Histogram(
            "vig_request_seconds", description="Time to an answer.", boundaries=_SECONDS, tag_keys=("route",)
        )
        self._gated = Counter(
            "vig_gated", description="Samples that a policy has judged.", tag_keys=("policy", "key", "verdict")
        )
        self._under_way = Gauge("vig_under_way", description="Samples under way in this process.")

    async def score(self, prepared: PreparedSample) -> tuple[LogProbs, LogProbs]:
        """See `Backend`. A lost replica's work is given to another: scoring twice does no harm."""
        pair = await asyncio.get_running_loop().run_in_executor(None, pickle.dumps, prepared.pair, 5)
        for _ in range(_ATTEMPTS):
            try:
                outcome = await self._scorer.score.remote(pair, prepared.tokens, current().name)
            except BackPressureError as error:
                raise busy("every engine has its queue full; try again in a moment") from error
            except DeploymentUnavailableError as error:
                raise busy("no engine is there") from error
            except RayActorError:
                self._facts = None
                continue
            except RayError as error:
                raise busy("the engine could not be asked") from error
            if isinstance(outcome, str):
                kind, _, cause = outcome.partition(": ")
                raise RequestError(422, kind, cause)
            return outcome  # type: ignore[no-any-return]
        raise busy("the engines were lost while they worked on this sample")

    async def facts(self) -> ModelFacts | None:
        """See `Backend`. Asks once, in the background, until an engine has answered."""
        if self._facts is None and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask())
        if self._facts is None and self._asking is not None:
            await asyncio.wait([self._asking], timeout=0.5)
        return self._facts

    async def _ask(self) -> None:
        try:
            self._facts = ModelFacts(**await self._scorer.facts.remote())
        except (RayError, DeploymentUnavailableError, BackPressureError):
            await asyncio.sleep(0.2)

    def record(self, route: str, status: int, seconds: float, under_way: int) -> None:
        """See `Backend`."""
        self._requests.inc(tags={"route": route, "status": str(status)})
        self._latency.observe(seconds, tags={"route": route})
        self._under_way.set(under_way)

    def gated(self, policy: str, key: str, verdict: str) -> None:
        """See `Backend`."""
        self._gated.inc(tags={"policy": policy, "key": key, "verdict": verdict})


@asgi_ingress("build_app")
class Ingress:
    """Validates, prepares, and asks the scorers."""

    def __init__(self, config: dict[str, Any], access: Access, scorer: Any) -> None:
        self._config, self._access, self._scorer = AppConfig(**config), access, scorer

    def build_app(self) -> FastAPI:
        """The routes, in each replica."""
        import cv2

        cv2.setNumThreads(1)  # Ray runs one of these a core, and the engine may want the others
        config = self._config
        formatter = load_formatter(*prompts_of(config))
        return make_app(Api(config, formatter, Replicas(self._scorer), self._access))


def build(args: dict[str, Any]) -> Any:
    """The application with the options of `AppConfig`, by name; raises StageError where one is wrong."""
    try:
        config = AppConfig(**args)
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
        option = ".".join(map(str, finding["loc"])) or "options"
        raise StageError(f"{option}: {finding['msg']}") from error
    scorer, ingress = deployments(config)
    return ingress(scorer)


def deployments(config: AppConfig, *, gpus_here: int | None = None) -> tuple[Any, Callable[[Any], Any]]:
    """The scorer, bound, and what binds the ingress to it or to its handle.

    The config is checked against what is really there first. `gpus_here`: this machine's GPUs, None on a cluster, which
    may get more. Raises StageError.
    """
    access = read_access(config, processes=parse_range(config.prepare_workers)[1])
    device = config.device
    if device == "auto":
        device = "cuda" if ray.is_initialized() and ray.cluster_resources().get("GPU") else "cpu"
    check_engine(config.engine, [config.reference], config.vllm, joins_cluster=False)
    formatter = load_formatter(*prompts_of(config))
    make_reference(config.reference, formatter=formatter, blur=config.blur)
    asked = engine_for(config.engine, formatter, config.model)
    engine, _ = choose_engine(asked, device=device, references=[config.reference])
    dtype = config.dtype or default_dtype(config.model, device)
    facts = {
        "name": os.path.basename(config.model.rstrip("/")) if os.path.isdir(config.model) else config.model,
        "fingerprint": fingerprint(config.model),
        "template": template_fingerprint(formatter),
        "dtype": dtype,
        "engine": engine,
    }
    engine_options = {
        "name": engine, **prompts_of(config)._asdict(),
        "dtype": dtype, "device": device, "batch_tokens": config.batch_tokens, "vllm": config.vllm,
    }  # fmt: skip
    gpus = _gpus(config, engine, gpus_here) if device == "cuda" else 0
    grace = config.timeout + 5
    scorer = serve.deployment(Scorer).options(
        name="Scorer",
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        max_ongoing_requests=config.queue,
        graceful_shutdown_timeout_s=grace,
        health_check_period_s=5,
        **_replicas(config.workers, busy_at=max(2, config.queue // 4)),
    )
    ingress = serve.deployment(Ingress).options(
        name="Ingress",
        ray_actor_options={"num_cpus": 1},
        # Beyond `queue` the ingress itself answers 503; so a few more requests must reach it.
        max_ongoing_requests=4 * config.queue,
        graceful_shutdown_timeout_s=grace,
        **_replicas(config.prepare_workers, busy_at=max(2, config.queue // 4)),
    )
    options = config.model_dump(include=set(AppConfig.model_fields))
    return scorer.bind(facts, engine_options, parse_range(config.workers)[1]), partial(ingress.bind, options, access)


def _gpus(config: AppConfig, engine: str, here: int | None) -> int:
    """GPUs an engine. Raises StageError where this machine's are too few: Ray Serve would wait for them for ever."""
    if here == 0:
        raise StageError("--device cuda: there is no GPU that Ray can see on this machine")
    gpus = gpus_an_engine(engine, config.vllm, here=here)
    least, _ = parse_range(config.workers)
    if here is not None and least * gpus > here:
        raise StageError(
            f"--workers {config.workers}: {least} engines take {least * gpus} GPUs, and this machine has {here}"
        )
    return gpus


def _replicas(worker_range: str, *, busy_at: int) -> dict[str, Any]:
    least, most = parse_range(worker_range)
    if least == most:
        return {"num_replicas": most}
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": busy_at}
    return {"autoscaling_config": scaling}
