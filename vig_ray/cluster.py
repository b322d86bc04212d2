"""Joining a Ray cluster, or starting a Ray on this machine for as long as a stage runs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
import ray.data

from vig_ray.errors import StageError
from vig_ray.storage import one_line

_SPARE_CPUS = 6


@dataclass(frozen=True)
class Machines:
    """What Ray has. `cores` is this machine's, None on a cluster, whose size may change while a job runs."""

    cores: int | None
    gpus: int

    def actors(self, spelled: str | None, by_default: int | None) -> tuple[int, int | None]:
        """Least and most actors of a pool: as an option spells it, else 1 to `by_default` (None: no bound)."""
        return parse_range(spelled) if spelled is not None else (1, by_default)


def parse_range(spelled: str) -> tuple[int, int]:
    """ "4" as (4, 4), "1..8" as (1, 8)."""
    low, _, high = spelled.partition("..")
    return int(low), int(high or low)


@contextmanager
def machines(address: str | None, *, actors: int, metrics_port: int | None = None) -> Iterator[Machines]:
    """The Ray cluster at `address` or RAY_ADDRESS; without either a Ray of its own, stopped at the end.

    A Ray that is running in this process already is used as it is. `actors`: how many the caller may start on this
    machine. `metrics_port`: where a Ray of its own tells its metrics, any by default. Raises
    StageError where no cluster answers.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what matters of an error is raised
    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        yield Machines(None, _gpus())
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address and metrics_port is not None:
        raise StageError(f"--metrics-port: the Ray at {address} has a metrics port already; leave it out")
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise StageError(f"--address {address}: no Ray cluster answers: {one_line(error)[:200]}") from error
        yield Machines(None, _gpus())
        return
    # Ray's CPUs are only a count. Reading, writing and the checkpoint filter each want one for themselves while every
    # actor holds one; with too few the job would wait for ever.
    cpus = actors + _SPARE_CPUS
    # Otherwise Ray announces on standard output that more processes than cores have started,
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(cpus))
    # and its core warns at every start of a restartable actor pool. What fails for real reaches us as an error.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with _native_messages_hidden():
        # "local": one of its own even where another Ray runs on this machine.
        ray.init("local", num_cpus=cpus, include_dashboard=False, _metrics_export_port=metrics_port, **quiet)
    try:
        yield Machines(os.cpu_count() or 1, _gpus())
    finally:
        ray.shutdown()


def _gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


@contextmanager
def _native_messages_hidden() -> Iterator[None]:
    """Close standard error to native code for a moment: at its start Ray's core announces its own log level there."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
