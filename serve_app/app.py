"""The Ray Serve application: `serve run serve_app.app:build model=DIR`.

    proxy ──▶ Ingress (CPU: checks, decodes, blurs, tokenises) ──▶ Scorer (the engine; batches across requests)

Both scale by themselves with the load, within `prepare_workers` and `workers`. On one machine `vig serve` has entrances
that listen themselves in the place of proxy and ingress (`entrance.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import ray
from fastapi import FastAPI
from pydantic import ValidationError
from ray import serve

from serve_app.access import Access, read_access
from serve_app.api import Api, Backend
from serve_app.logs import log_here
from serve_app.models import prompts_for
from serve_app.options import AppConfig
from serve_app.routes import make_app
from serve_app.scorer import Replicas, Scorer, identity_of, turns_of
from vig_ray.cluster import parse_range
from vig_ray.compat.ray import asgi_ingress
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import fingerprint
from vig_ray.model.load import default_dtype, load_formatter, template_fingerprint
from vig_ray.model.prompt import Formatter
from vig_ray.scoring.engines.load import check_engine, choose_engine, deciding, engine_for, gpus_an_engine
from vig_ray.scoring.reference import make_reference

log = logging.getLogger("vig_ray.serve")

_GROW_AFTER_S = 10.0  # Ray Serve's own 30 are long to wait behind a full queue


@asgi_ingress("build_app")
class Ingress:
    """Validates, prepares, and asks the scorers."""

    def __init__(
        self, config: dict[str, Any], access: Access, identities: dict[str, str], scorers: dict[str, Any]
    ) -> None:
        self._config, self._given = AppConfig(**config), (access, identities, scorers)

    def build_app(self) -> FastAPI:
        """The routes, in each replica."""
        # Ray Serve's proxy answers the id that came in.
        return make_app(make_api(self._config, *self._given), id_answered=True)


def make_api(config: AppConfig, access: Access, identities: Mapping[str, str], scorers: Mapping[str, Any]) -> Api:
    """What checks and prepares, and asks the scorers by their handles; these and the identities of the models have the
    models' names."""
    import cv2

    cv2.setNumThreads(1)  # Ray runs one of these a core, and the engine may want the others
    log_here(config.log_format)
    workers = parse_range(config.workers)[1]
    behind: dict[str, tuple[Formatter, Backend]] = {}
    for name, scorer in scorers.items():
        handle = scorer.options(multiplexed_model_id=name) if config.models_a_worker else scorer
        behind[name] = (
            load_formatter(*prompts_for(config, name)),
            Replicas(handle, scorers=workers, identity=identities[name]),
        )
    first = next(iter(config.models))
    return Api(config, *behind[first], access, behind)


def build(args: dict[str, Any]) -> Any:
    """The application with the options of `AppConfig`, by name; raises StageError where one is wrong."""
    try:
        config = AppConfig(**args)
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
        option = ".".join(map(str, finding["loc"])) or "options"
        raise StageError(f"{option}: {finding['msg']}") from error
    bound = deployments(config)
    return bound.ingress(bound.scorers)


class Bound(NamedTuple):
    """The scorers, bound, and the identities of their models, by the models' names; and what binds the ingress to the
    scorers or to their handles."""

    scorers: dict[str, Any]
    identities: dict[str, str]
    ingress: Callable[[Any], Any]


def deployments(
    config: AppConfig, *, gpus_here: int | None = None, formatters: Mapping[str, Formatter] | None = None
) -> Bound:
    """The deployments of the application.

    With `models_a_worker` all models have the same scorer. The config is checked against what is really there first.
    `gpus_here`: this machine's GPUs, None on a cluster, which may get more. `formatters`: of the models by name, where
    they are loaded already. Raises StageError.
    """
    access = read_access(config, processes=parse_range(config.prepare_workers)[1])
    device = config.device
    if device == "auto":
        device = "cuda" if ray.is_initialized() and ray.cluster_resources().get("GPU") else "cpu"
        if device == "cpu" and gpus_here is None:
            log.warning("no GPU in the cluster now: scoring on CPUs (device: cuda waits for GPUs instead)")
    check_engine(config.engine, config.reference, config.vllm, joins_cluster=False)
    engines = {name: _engine(config, name, device, (formatters or {}).get(name)) for name in config.models}
    if config.models_a_worker is not None and any(each["name"] != "torch" for _, each in engines.values()):
        raise StageError("--models-a-worker: only models of the torch engine (--engine torch) take turns in a worker")
    kinds = [engine["name"] for _, engine in engines.values()]
    gpus = _gpus(config, kinds[: 1 if config.models_a_worker else None], gpus_here) if device == "cuda" else 0
    grace, busy_at = config.timeout + 5, max(2, config.queue // 4)
    workers = parse_range(config.workers)[1]

    def scorer(number: int, kind: type) -> Any:
        return serve.deployment(kind).options(
            name=f"Scorer-{number}" if number else "Scorer",
            ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
            max_ongoing_requests=config.queue,
            graceful_shutdown_timeout_s=grace,
            health_check_period_s=5,
            # Of calls, each of which takes along what gathers: an engine that keeps up has one at a time.
            **_replicas(config, config.workers, busy_at=1.5),
        )

    ingress = serve.deployment(Ingress).options(
        name="Ingress",
        ray_actor_options={"num_cpus": 1},
        # Beyond `queue` the ingress itself answers 503; so a few more requests must reach it.
        max_ongoing_requests=4 * config.queue,
        graceful_shutdown_timeout_s=grace,
        **_replicas(config, config.prepare_workers, busy_at=busy_at),
    )
    options = config.model_dump(include=set(AppConfig.model_fields))
    if config.models_a_worker is None:
        scorers = {
            name: scorer(number, Scorer).bind(*engines[name], workers * len(engines), config.log_format)
            for number, name in enumerate(engines)
        }
    else:
        taking_turns = serve.multiplexed(max_num_models_per_replica=config.models_a_worker)
        shared = scorer(0, turns_of(taking_turns)).bind(engines, workers, config.log_format)
        scorers = dict.fromkeys(engines, shared)
    identities = {name: identity_of(facts) for name, (facts, _) in engines.items()}
    return Bound(scorers, identities, partial(ingress.bind, options, access, identities))


def _engine(
    config: AppConfig, name: str, device: str, formatter: Formatter | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts of a model, and how its engine is loaded. Raises StageError."""
    prompts = prompts_for(config, name)
    formatter = formatter or load_formatter(*prompts)
    for reference in config.reference:
        make_reference(reference, formatter=formatter, blur=config.blur)
    asked = engine_for(config.engine, formatter, prompts.model)
    engine, _ = choose_engine(asked, device=device, references=config.reference)
    dtype = config.dtype or default_dtype(prompts.model, device)
    facts = {
        "name": name,
        "fingerprint": fingerprint(prompts.model),
        "template": template_fingerprint(formatter),
        "dtype": dtype,
        "engine": engine,
        "vllm": deciding(config.vllm) if engine == "vllm" else None,
    }
    options = {
        "name": engine, **prompts._asdict(),
        "dtype": dtype, "device": device, "batch_tokens": config.batch_tokens, "vllm": config.vllm,
    }  # fmt: skip
    return facts, options


def _gpus(config: AppConfig, engines: Sequence[str], here: int | None) -> int:
    """GPUs an engine; `engines`: the kind of each pool of them.

    Raises StageError where this machine's are too few: Ray Serve would wait for them for ever.
    """
    if here == 0:
        raise StageError("--device cuda: there is no GPU that Ray can see on this machine")
    gpus = max(gpus_an_engine(engine, config.vllm, here=here) for engine in engines)
    least = parse_range(config.workers)[0] * len(engines)
    if here is not None and least * gpus > here:
        raise StageError(
            f"--workers {config.workers}: {least} engines take {least * gpus} GPUs, and this machine has {here}"
        )
    return gpus


def _replicas(config: AppConfig, worker_range: str, *, busy_at: float) -> dict[str, Any]:
    least, most = parse_range(worker_range)
    if least == most:
        return {"num_replicas": most}
    scaling = {
        "min_replicas": least, "max_replicas": most, "target_ongoing_requests": busy_at,
        "upscale_delay_s": _GROW_AFTER_S, "downscale_delay_s": config.shrink_after,
    }  # fmt: skip
    return {"autoscaling_config": scaling}
