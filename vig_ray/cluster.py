"""Joining a Ray cluster, or starting a Ray on this machine for as long as a stage runs."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vig_ray.compat.ray import (
    allow_worker_starts,
    cause_of,
    errors_in_text,
    log_node_messages,
    metrics_port_option,
    parquet_footer_actors,
    started_here,
    without_helpers,
)
from vig_ray.errors import StageError
from vig_ray.storage import one_line

T = TypeVar("T")
log = logging.getLogger(__name__)

_SPARE_CPUS = 6
_RETRIES = 8
_STARTS = 3
_FREED_WITHIN_S = 10.0  # Ray says a little late that CPUs are free again
_FILES_A_FOOTER_READER = 64


@dataclass(frozen=True)
class Machines:
    """What Ray has now. `cores` is this machine's, None on a cluster, whose size may change while a job runs."""

    cores: int | None
    gpus: int

    def actors(self, spelled: str | None, by_default: int | None) -> tuple[int, int | None]:
        """Least and most actors of a pool: as an option spells it, else 1 to `by_default` (None: no bound)."""
        return parse_range(spelled) if spelled is not None else (1, by_default)

    def device(self, asked: str, doing: str) -> str:
        """Where models run, "cuda" or "cpu"; `asked` may be "auto". `doing`: what is done there, for a person.

        Raises StageError where this machine has no GPU that is asked for; on a cluster one may still come.
        """
        if asked == "cpu" or (asked == "auto" and not self.gpus):
            if asked == "auto" and self.cores is None:
                log.warning("no GPU in the cluster now: %s on CPUs (--device cuda waits for GPUs instead)", doing)
            return "cpu"
        if not self.gpus:
            if self.cores is not None:
                raise StageError("--device cuda: there is no GPU that Ray can see on this machine")
            log.warning("no GPU in the cluster now: waiting for a machine that has one")
        return "cuda"


def parse_range(spelled: str) -> tuple[int, int]:
    """ "4" as (4, 4), "1..8" as (1, 8)."""
    low, _, high = spelled.partition("..")
    return int(low), int(high or low)


@contextmanager
def machines(
    address: str | None,
    *,
    actors: int,
    metrics_port: int | None = None,
    least_cpus: int = 1,
    spare_cpus: int = _SPARE_CPUS,
) -> Iterator[Machines]:
    """The Ray cluster at `address` or RAY_ADDRESS; without either a Ray of its own, stopped at the end.

    A Ray that is running in this process already is used as it is. `actors`: how many the caller may start on this
    machine. `metrics_port`: where a Ray of its own tells its metrics, any by default. `least_cpus`: what the caller
    can't do without in a Ray that this process has started itself. `spare_cpus`: those of a Ray of its own beside the
    actors', for Ray Data by default. Raises StageError where no cluster answers, where the Ray that is running is
    another than `address`, or has too few CPUs.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what matters of an error is raised
    if ray.is_initialized():
        if metrics_port is not None:
            raise StageError("--metrics-port: this process uses a Ray already, which has a metrics port; leave it out")
        if address is not None and not _is_running(address):
            running = ray.get_runtime_context().gcs_address
            raise StageError(f"--address {address}: this process uses the Ray at {running} already; leave it out")
        yield _running(least_cpus)
        return
    address = address or os.environ.get("RAY_ADDRESS")
    log_node_messages(log)
    # Its core warns at every start of a restartable actor pool, and of every lost object that is made again. What
    # fails for real reaches us as an error.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    level = logging.ERROR
    if address and metrics_port is not None:
        raise StageError(f"--metrics-port: the Ray at {address} has a metrics port already; leave it out")
    if address:
        try:
            with _native_messages_hidden():
                ray.init(address=address, logging_level=level, log_to_driver=False)
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise StageError(f"--address {address}: no Ray cluster answers: {one_line(error)[:200]}") from error
        _joined.add(address)
        yield _running(least_cpus)
        return
    # Ray's CPUs are only a count. Reading, writing and the checkpoint filter each want one for themselves while every
    # actor holds one; with too few the job would wait for ever. Ray begins with a process for each of them.
    cpus = actors + spare_cpus
    allow_worker_starts(cpus)
    start(num_cpus=cpus, logging_level=level, **metrics_port_option(metrics_port))
    try:
        yield Machines(os.cpu_count() or 1, _gpus())
    finally:
        ray.shutdown()


def start(**options: Any) -> None:
    """Start a Ray in this process, even where another one runs on this machine, by `ray.init` with these options.

    It has no dashboard, and what its workers print isn't sent here.

    Threads of OpenMP in its processes sleep while they wait, unless OMP_WAIT_POLICY says otherwise: by default they
    spin, which takes the core from the process that they wait for where several share the cores.

    Ray gives each part of itself 30 seconds to begin, which may be too few on a machine that does much else, and then
    ends with an error: so it is tried again. Raises StageError where it doesn't start in three tries.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for tries_left in range(_STARTS - 1, -1, -1):
        try:
            with _native_messages_hidden(), without_helpers():
                ray.init("local", include_dashboard=False, log_to_driver=False, **options)
            return
        except Exception as error:  # Ray raises just that, too
            ray.shutdown()
            if not tries_left:
                raise StageError(
                    f"no Ray starts on this machine; in {_STARTS} tries: {one_line(error)[:300]}"
                ) from error
            log.warning("Ray didn't start; again: %s", one_line(error)[:300])


def _running(least_cpus: int) -> Machines:
    """The Ray that this process uses. Raises StageError where it started that itself, with too few CPUs."""
    if not started_here():
        return Machines(None, _gpus())
    total = ray.cluster_resources().get("CPU", 0.0)
    deadline = time.monotonic() + _FREED_WITHIN_S
    while (free := ray.available_resources().get("CPU", 0.0)) < least_cpus:
        if time.monotonic() > deadline:
            raise StageError(
                f"the Ray of this process has {total:g} CPUs, {free:g} of them free, and {least_cpus} must be free; "
                f"start it with ray.init(num_cpus={int(total - free) + least_cpus}) or more"
            )
        time.sleep(0.1)
    # Half of what is left over, since there may be two pools of actors that hold a CPU each.
    return Machines(min(os.cpu_count() or 1, 1 + int(free - least_cpus) // 2), _gpus())


_joined: set[str] = set()  # the addresses by which this process has joined a Ray


def _is_running(address: str) -> bool:
    """Whether `address` means the Ray that this process uses."""
    if address == "local":
        return started_here()
    if address == "auto" or address in _joined:
        return True
    ours, theirs = ray.get_runtime_context().gcs_address.rpartition(":"), address.rpartition(":")
    return ours[2] == theirs[2] and bool(_numbers_of(ours[0]) & _numbers_of(theirs[0]))


def _numbers_of(host: str) -> set[str]:
    """The IP addresses of a host, with this machine's own by one name."""
    try:
        numbers = {str(info[4][0]) for info in socket.getaddrinfo(host.strip("[]"), None)}
    except OSError:
        return set()
    this_machine = {"127.0.0.1", "::1", ray.util.get_node_ip_address()}
    return numbers | this_machine if numbers & this_machine else numbers


def warn_of_few_cpus(needed: int) -> None:
    """Tell where a cluster, which may still grow, has fewer CPUs than a job needs to begin."""
    total = ray.cluster_resources().get("CPU", 0.0)
    if total < needed:
        log.warning("the cluster has %g CPUs now and needs %d: waiting for machines that have them", total, needed)


@contextmanager
def footer_readers(files: int) -> Iterator[None]:
    """While Ray Data plans a job that reads so many Parquet files: no more actors for their footers than they need.

    By itself it starts 32 of a core each, even for one file: seconds on one machine, and half a dozen machines with
    GPUs on a cluster that starts them on demand.
    """
    with parquet_footer_actors(min(32, max(1, files // _FILES_A_FOOTER_READER))):
        yield


_alone = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """What runs within does so in this process, though it is a worker of a Ray: many at a time, each with its core."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def joins(address: str | None) -> bool:
    """Whether `machines` joins a Ray that is there, instead of starting one."""
    if _alone.get() and address is None:
        return False
    return bool(address or os.environ.get("RAY_ADDRESS")) or ray.is_initialized()


@contextmanager
def scans_on_ray(address: str | None) -> Iterator[bool]:
    """Whether scans of files run on Ray: on a cluster, joined meanwhile. On one machine threads do it with less.

    A Ray that this process has started is one machine; it is used where `address` asks for it.
    """
    if _alone.get() and address is None:
        yield False
        return
    asked = bool(address or os.environ.get("RAY_ADDRESS"))
    if not (asked or (ray.is_initialized() and not started_here())):
        yield False
        return
    with machines(address, actors=os.cpu_count() or 1):
        yield True


def on_machines(work: Sequence[Callable[[], T]]) -> Iterator[T]:
    """Call each of `work` on some machine of the cluster, with a core to itself; what they return, as it comes.

    What a lost machine was doing is done again by another. Raises StageError where one of them raises.
    """
    task = ray.remote(num_cpus=1, max_retries=_RETRIES)(lambda call: call())
    waiting = [task.remote(call) for call in work]
    try:
        while waiting:
            done, waiting = ray.wait(waiting, fetch_local=False)
            yield from ray.get(done)
    except ray.exceptions.RayError as error:
        raise failure(error, "import") from error
    finally:
        for each in waiting:
            ray.cancel(each, force=True)


def failure(error: BaseException, what: str) -> StageError:
    """What a worker raised, on one line: its StageError, or one that says what failed, with the error and its class.

    Of several errors that led to each other it is the last StageError, whose text says what to do, else the first.
    """
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, StageError) and not isinstance(inner, ray.exceptions.RayError):  # Ray's is both
            return StageError(str(inner))
        inner = cause_of(inner)
    # Most of it arrives as the text of tracebacks, and Ray Data's wrapper as the exception.
    texts = errors_in_text(error)
    ours = f"{StageError.__module__}.{StageError.__name__}: "
    stage_errors = [text for text in texts if text.startswith(ours)]
    if stage_errors:
        return StageError(stage_errors[-1].removeprefix(ours))
    return StageError(f"{what} failed: {texts[0] if texts else type(error).__name__}"[:500])


def with_the_driver() -> NodeAffinitySchedulingStrategy:
    """For actors that a job can't lose: on the driver's machine, which is the one that doesn't come and go."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def alive() -> int:
    """How many machines the cluster has now, the head included."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


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
