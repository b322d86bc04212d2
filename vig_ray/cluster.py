"""Joining a Ray cluster, or starting a Ray on this machine for as long as a stage runs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any, TypeVar

import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vig_ray.errors import StageError
from vig_ray.storage import one_line

T = TypeVar("T")
log = logging.getLogger(__name__)

_SPARE_CPUS = 6
_FILES_A_FOOTER_READER = 64


@dataclass(frozen=True)
class Machines:
    """What Ray has. `cores` is this machine's, None on a cluster, whose size may change while a job runs.

    `gpus`: now. `has_gpus`: now, or on machines that the cluster's autoscaler can start.
    """

    cores: int | None
    gpus: int
    scales_to_gpus: bool = False

    @property
    def has_gpus(self) -> bool:
        """See the class."""
        return self.gpus > 0 or self.scales_to_gpus

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
        yield Machines(None, _gpus(), _scales_to_gpus())
        return
    _node_messages_logged()
    # Its core warns at every start of a restartable actor pool, and of every lost object that is made again. What
    # fails for real reaches us as an error.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address and metrics_port is not None:
        raise StageError(f"--metrics-port: the Ray at {address} has a metrics port already; leave it out")
    if address:
        try:
            with _native_messages_hidden():
                ray.init(address=address, **quiet)
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise StageError(f"--address {address}: no Ray cluster answers: {one_line(error)[:200]}") from error
        yield Machines(None, _gpus(), _scales_to_gpus())
        return
    # Ray's CPUs are only a count. Reading, writing and the checkpoint filter each want one for themselves while every
    # actor holds one; with too few the job would wait for ever.
    cpus = actors + _SPARE_CPUS
    # Otherwise Ray announces on standard output that more processes than cores have started.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(cpus))
    with _native_messages_hidden():
        # "local": one of its own even where another Ray runs on this machine.
        ray.init("local", num_cpus=cpus, include_dashboard=False, _metrics_export_port=metrics_port, **quiet)
    try:
        yield Machines(os.cpu_count() or 1, _gpus())
    finally:
        ray.shutdown()


@contextmanager
def footer_readers(files: int) -> Iterator[None]:
    """While Ray Data plans a job that reads so many Parquet files: no more actors for their footers than they need.

    By itself it starts 32 of a core each, even for one file: seconds on one machine, and half a dozen machines with
    GPUs on a cluster that starts them on demand.
    """
    name = "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(min(32, max(1, files // _FILES_A_FOOTER_READER)))
    try:
        yield
    finally:
        del os.environ[name]


def on_machines(work: Sequence[Callable[[], T]]) -> Iterator[T]:
    """Call each of `work` on some machine of the cluster, with a core to itself; what they return, as it comes.

    What a lost machine was doing is done again by another. Raises StageError where one of them raises.
    """
    task = ray.remote(num_cpus=1, max_retries=-1)(lambda call: call())
    waiting = [task.remote(call) for call in work]
    while waiting:
        done, waiting = ray.wait(waiting, fetch_local=False)
        try:
            yield from ray.get(done)
        except ray.exceptions.RayError as error:
            raise failure(error, "import") from error


def failure(error: BaseException, what: str) -> StageError:
    """What a worker raised, on one line: its StageError, or one that says what failed, with the error and its class.

    It arrives as the text of tracebacks, the first cause first; what comes as an exception may be Ray Data's wrapper,
    which says nothing of it.
    """
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, StageError) and not isinstance(inner, ray.exceptions.RayError):  # Ray's is both
            return StageError(str(inner))
        inner = getattr(inner, "cause", None) or inner.__cause__
    first = str(error).split("\n\nThe above exception was the direct cause of", 1)[0].splitlines()
    # Below the traceback's last place, and the code there, which is indented further, is the exception's own text.
    places = [number for number, line in enumerate(first) if line.startswith('  File "')]
    below = first[places[-1] + 1 :] if places else [line for line in first if "ray::" not in line]
    text = " ".join(" ".join(dropwhile(lambda line: line.startswith("    "), below)).split())
    if not text:
        text = f"{type(error).__name__}: {one_line(error)}"
    ours = f"{StageError.__module__}.{StageError.__name__}: "
    return StageError(text.removeprefix(ours) if text.startswith(ours) else f"{what} failed: {text}"[:500])


def with_the_driver() -> NodeAffinitySchedulingStrategy:
    """For actors that a job can't lose: on the driver's machine, which is the one that doesn't come and go."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def alive() -> int:
    """How many machines the cluster has now, the head included."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def _node_messages_logged() -> None:
    """Send to the log what Ray prints on the driver's standard output, which is for results.

    A lost machine is told there with the last lines of its log, a killed worker with advice, each time.
    """
    from ray._private import worker

    def to_log(data: Mapping[str, Any], **_: Any) -> None:
        log.debug("%s: %s", data.get("pid"), "\n".join(data["lines"]))

    if hasattr(worker, "print_to_stdstream"):  # private to Ray
        worker.print_to_stdstream = to_log


def _gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def _scales_to_gpus() -> bool:
    """Whether an autoscaler, where there is one, can start machines with GPUs."""
    from ray._private.state import state  # the only place where it is told

    most: dict[str, int] = state.get_max_resources_from_cluster_config() or {}
    return most.get("GPU", 0) > 0


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
