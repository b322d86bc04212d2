"""Ray's inside, and what it calls alpha. tests/compat/test_ray.py fails where a release changes any of it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from itertools import dropwhile
from typing import Any


def started_here() -> bool:
    """Whether this process started the Ray that it uses, instead of joining one. Ray must be initialized.

    It matters since such a Ray is one machine that never gets another, and Ray has no public word for it. Checked
    against ray 2.60.0.
    """
    from ray._private import worker

    node = worker._global_node
    return node is not None and bool(node.is_head())


def log_node_messages(log: logging.Logger) -> None:
    """Send to `log`, as debug messages, what Ray prints on the driver's standard output, which is for results.

    A lost machine is told there with the last lines of its log, a killed worker with advice, each time, whatever
    `log_to_driver` says: the thread that does it has no public switch, so the function that it calls is replaced.
    Checked against ray 2.60.0.
    """
    from ray._private import worker

    def to_log(data: Mapping[str, Any], **_: Any) -> None:
        log.debug("%s: %s", data.get("pid"), "\n".join(data["lines"]))

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = to_log


def metrics_port_option(port: int | None) -> dict[str, Any]:
    """The argument of `ray.init` that says where a Ray started by it tells its metrics, None for any port.

    Only `ray start` has a public one. Checked against ray 2.60.0.
    """
    return {"_metrics_export_port": port}


def allow_worker_starts(count: int) -> None:
    """Let a Ray that is started by this process start so many workers at once, unless the environment says how many.

    Beyond the number of cores, which is its default, Ray announces on standard output that it has too many. The limit
    is one of the settings of its core, which are no public interface. Checked against ray 2.60.0.
    """
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(count))


@contextmanager
def without_helpers() -> Iterator[None]:
    """While `ray.init` starts a Ray for this process alone: without three programs that would have nothing to do in it.

    They are the dashboard's, which starts even where none is asked for and for which `ray.init` waits; the
    autoscaler's, as such a Ray is one machine; and the one that sends what workers print to the driver, which
    `log_to_driver=False` refuses. Each takes a second of a core to start and 60 MB, and a start of Ray seconds longer.
    Ray has settings for the last two, which `ray.init` doesn't offer. What a Ray without a dashboard can't do is tell
    how it is used, and answer Ray's State API. Checked against ray 2.60.0.
    """
    from ray._private import parameter, ray_constants, services

    params, start_api_server = parameter.RayParams, services.start_api_server

    def start_none(*arguments: Any, **_: Any) -> tuple[str, None]:
        # What of it this process needs, and an address where nobody answers: the agent of the machine would ask for one
        # every second, and log that there is none.
        gcs = services.GcsClient(address=arguments[3], cluster_id=arguments[4])
        import_module("ray.experimental.internal_kv")._initialize_internal_kv(gcs)
        address = ray_constants.DASHBOARD_ADDRESS.encode()
        gcs.internal_kv_put(address, b"127.0.0.1:9", True, ray_constants.KV_NAMESPACE_DASHBOARD)
        return "", None

    parameter.RayParams = partial(params, no_monitor=True, include_log_monitor=False)
    services.start_api_server = start_none
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server = params, start_api_server


@contextmanager
def parquet_footer_actors(most: int) -> Iterator[None]:
    """While a job that reads Parquet is planned: at most so many actors for the files' footers.

    What the user has set stays. Ray Data reads the number from the environment whenever it plans, and no option of
    `read_parquet` or of the DataContext holds it. Checked against ray 2.60.0, whose default is 32.
    """
    name = "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"
    if name in os.environ:
        yield
        return
    # What is set when this is loaded would stay its default, for other jobs of this process too.
    import_module("ray.data._internal.datasource_v2.formats.parquet.footer_file_indexer")
    os.environ[name] = str(most)
    try:
        yield
    finally:
        del os.environ[name]


def file_names(prefix: str) -> Any:
    """The `filename_provider` by which Ray Data begins every Parquet file's name with `prefix`.

    Public, but alpha. Checked against ray 2.60.0.
    """
    from ray.data.datasource import FilenameProvider

    return FilenameProvider(dataset_uuid=prefix, file_format="parquet")


def committed_block(path: str) -> str | None:
    """The name of the block that a file of Ray Data's checkpoint commits; None where its data isn't whole yet.

    A checkpoint is written as NAME.pending.parquet before the block's data and renamed to NAME.parquet after it. Ray
    tells nobody which blocks it has committed, only which rows it leaves out. Checked against ray 2.60.0.
    """
    name = path.rpartition("/")[2]
    return None if name.endswith(".pending.parquet") else name.removesuffix(".parquet")


def written_block(path: str) -> str:
    """The name of the block whose data a file holds: Ray Data adds -0, -1, ... to it.

    The name is that of the block's checkpoint, see `committed_block`. Checked against ray 2.60.0.
    """
    return path.rpartition("/")[2].rpartition("-")[0]


def cause_of(error: BaseException) -> BaseException | None:
    """What led to an error: for one that Ray raises in place of another's, that other; else Python's own `__cause__`.

    `cause` of RayTaskError is documented nowhere. Checked against ray 2.60.0.
    """
    return getattr(error, "cause", None) or error.__cause__


_NEXT_ERROR = re.compile(r"\n\n(?:The above exception was|During handling of the above)[^\n]*\n\n")


def errors_in_text(error: BaseException) -> list[str]:
    """Class and message of every error in the text of one of Ray's, each on one line, in the order they were raised.

    Much of what workers raise arrives as the text of tracebacks alone: what an actor's constructor raised, and what led
    to the error that is told. Checked against ray 2.60.0.
    """
    return [text for text in map(_below_traceback, _NEXT_ERROR.split(str(error))) if text]


def _below_traceback(traceback: str) -> str:
    """An exception's class and message, below the traceback's last place and the code there, which is indented."""
    lines = traceback.splitlines()
    places = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    below = lines[places[-1] + 1 :] if places else [line for line in lines if "ray::" not in line]
    return " ".join(" ".join(dropwhile(lambda line: line.startswith("    "), below)).split())


def worker_errors(error: BaseException) -> list[BaseException]:
    """What the workers of a Ray Train run raised, of which `error` tells; empty where no worker did.

    `worker_failures` of WorkerGroupError is public, but alpha. Checked against ray 2.60.0.
    """
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", None) or {}
    return [getattr(failure, "cause", None) or failure for failure in failures.values()]


def being_preempted() -> bool:
    """Whether a machine of this Ray Train run has been told that it will be taken away. Called by a worker.

    Public, but alpha. Checked against ray 2.60.0.
    """
    import ray.train

    return ray.train.get_preemption_info() is not None


def hide_uploads() -> None:
    """Keep Ray from logging each package that submitting a job uploads.

    The loggers are those of the modules that do it, some of which set their own level when they are imported. Checked
    against ray 2.60.0.
    """
    from ray._private.runtime_env import packaging
    from ray.dashboard.modules import dashboard_sdk
    from ray.dashboard.modules.job import sdk

    for module in (packaging, dashboard_sdk, sdk):
        logging.getLogger(module.__name__).setLevel(logging.WARNING)


def asgi_ingress(method: str) -> Callable[[type], Any]:
    """Decorate a Ray Serve ingress whose ASGI application its method `method` makes, in every replica.

    `serve.ingress()` calls a method whose name is written as one of Ray's own. Its other ways don't do: an application
    is pickled where the class is declared, and a function that makes one isn't given the replica's options. Checked
    against ray 2.60.0.
    """

    def decorate(ingress: type) -> Any:
        from ray import serve

        setattr(ingress, "__serve_build_asgi_app__", getattr(ingress, method))  # noqa: B010 - mypy knows no such name
        return serve.ingress()(ingress)

    return decorate
