"""Where a scoring run takes place: on which device, by which engine, and how many actors of each kind there are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from vig_ray.cluster import Machines, failure
from vig_ray.errors import StageError
from vig_ray.scoring.engines.load import choose_engine, gpus_an_engine

log = logging.getLogger(__name__)


class Placed(Protocol):
    """What of a stage's config says where it runs, as `vig_ray.scoring.config.ScoreConfig` has it."""

    @property
    def device(self) -> str:
        """auto, cpu or cuda."""

    @property
    def workers(self) -> str | None:
        """How many engines."""

    @property
    def prepare_workers(self) -> str | None:
        """How many processes that prepare."""

    @property
    def vllm(self) -> Mapping[str, Any]:
        """Options of vLLM's engine."""


@dataclass(frozen=True)
class Pools:
    """How many actors of each kind, least and most (None: no bound), and what an engine has to itself.

    `threads`: CPU threads an engine, None where it decides by itself.
    """

    preparers: tuple[int, int | None]
    engines: tuple[int, int | None]
    gpus_each: int
    threads: int | None

    def text(self) -> str:
        """How many engines there are at a time, for a person."""
        least, most = self.engines
        return f"{least} or more" if most is None else f"{least} to {most}" if most > least else str(least)


ONE_OF_EACH = Pools((1, 1), (1, 1), 0, None)
"""Of a run without a Ray."""


@dataclass(frozen=True)
class Placement:
    """`device`: "cuda" or "cpu". `engine`, and `why` that one. `dtype`: of the model."""

    device: str
    engine: str
    why: str
    dtype: str
    pools: Pools

    def text(self) -> str:
        """For a person."""
        return f"{self.engine} engine ({self.why}) on {self.device} in {self.dtype}, {self.pools.text()} at a time"


def device_for(config: Placed, ray_has: Machines) -> str:
    """Where the engines run: "cuda" or "cpu". Raises StageError where this machine has no GPU that is asked for."""
    if config.device == "cpu" or (config.device == "auto" and not ray_has.gpus):
        if config.device == "auto" and ray_has.cores is None:
            log.warning("no GPU in the cluster now: scoring on CPUs (--device cuda waits for GPUs instead)")
        return "cpu"
    if not ray_has.gpus:
        if ray_has.cores is not None:
            raise StageError("--device cuda: there is no GPU that Ray can see on this machine")
        log.warning("no GPU in the cluster now: waiting for a machine that has one")
    return "cuda"


def engine_there(asked: str, references: Sequence[str], ray_has: Machines, device: str) -> tuple[str, str]:
    """The engine to take and why; on a cluster a machine with a GPU says what is installed there.

    Raises StageError where it can't be had, or can't be asked for.
    """
    if asked != "auto" or ray_has.cores is not None or device != "cuda":
        return choose_engine(asked, device=device, references=references)
    ask = ray.remote(num_cpus=0, num_gpus=1, max_retries=8)(choose_engine)
    try:
        answer: tuple[str, str] = ray.get(ask.remote(asked, device=device, references=references))
    except ray.exceptions.RayError as error:
        raise failure(error, "asking a machine with a GPU for its engine") from error
    return answer


def pools_for(config: Placed, ray_has: Machines, device: str, engine: str) -> Pools:
    """One engine a GPU, or as many GPUs an engine as vLLM's parallel sizes ask for; on CPUs one torch engine a core.

    Raises StageError where this machine has too few GPUs for one engine.
    """
    preparers = ray_has.actors(config.prepare_workers, ray_has.cores)
    if device == "cuda":
        here = None if ray_has.cores is None else ray_has.gpus
        each = gpus_an_engine(engine, config.vllm, here=here)
        return Pools(preparers, ray_has.actors(config.workers, None if here is None else here // each), each, None)
    # vLLM uses every core of a machine by itself.
    engines = ray_has.actors(config.workers, 1 if engine == "vllm" else ray_has.cores)
    threads = max(1, (ray_has.cores or 1) // (engines[1] or 1))
    alone = engine == "vllm" and engines[1] == 1
    return Pools(preparers, engines, 0, None if alone else threads)
