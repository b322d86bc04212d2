"""The Ray Serve application: `serve run serve_app.app:build model=DIR`.

    proxy ──▶ Ingress (CPU: checks, decodes, blurs, tokenises) ──▶ Scorer (the engine; batches across requests)

Both scale by themselves with the load, within `prepare_workers` and `workers`. On one machine `vig serve` has entrances
that listen themselves in the place of proxy and ingress (`entrance.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import ValidationError
from ray import serve

from serve_app.api import Api
from serve_app.auth import key_hashes
from serve_app.options import AppConfig
from serve_app.routes import make_app
from serve_app.scorer import Replicas, Scorer
from vig_ray.cluster import parse_range
from vig_ray.compat.ray import asgi_ingress
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import fingerprint
from vig_ray.model.load import default_dtype, load_formatter, prompts_of, template_fingerprint
from vig_ray.scoring.engines.load import check_engine, choose_engine, engine_for, gpus_an_engine
from vig_ray.scoring.reference import make_reference


@asgi_ingress("build_app")
class Ingress:
    """Validates, prepares, and asks the scorers."""

    def __init__(self, config: dict[str, Any], hashes: list[str], scorer: Any) -> None:
        self._config, self._hashes, self._scorer = AppConfig(**config), hashes, scorer

    def build_app(self) -> FastAPI:
        """The routes, in each replica."""
        return make_app(make_api(self._config, self._scorer), hashes=self._hashes)


def make_api(config: AppConfig, scorer: Any) -> Api:
    """What checks and prepares, and asks the scorers by their handle."""
    import cv2

    cv2.setNumThreads(1)  # Ray runs one of these a core, and the engine may want the others
    formatter = load_formatter(*prompts_of(config))
    return Api(config, formatter, Replicas(scorer, scorers=parse_range(config.workers)[1]))


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


def read_key_hashes(path: str | None) -> list[str]:
    """The hashes of the keys in the file at `path`, [] for None. Raises StageError for an unreadable or empty file."""
    if path is None:
        return []
    try:
        with open(path, encoding="utf-8") as file:
            hashes = key_hashes(file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise StageError(f"--keys {path}: can't be read") from error
    if not hashes:
        raise StageError(f"--keys {path}: holds no key")
    return hashes


def deployments(config: AppConfig, *, gpus_here: int | None = None) -> tuple[Any, Callable[[Any], Any]]:
    """The scorer, bound, and what binds the ingress to it or to its handle.

    The config is checked against what is really there first. `gpus_here`: this machine's GPUs, None on a cluster, which
    may get more. Raises StageError.
    """
    hashes = read_key_hashes(config.keys)
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
    return scorer.bind(facts, engine_options, parse_range(config.workers)[1]), partial(ingress.bind, options, hashes)


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
