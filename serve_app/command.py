"""`vig serve`: the application on this machine, until a signal stops it."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from vig_ray.cli import Verb
from vig_ray.errors import StageError

if TYPE_CHECKING:
    from serve_app.access import Access
    from serve_app.entrance import Listening

log = logging.getLogger("vig_ray.serve")

_APPLICATION = "scorer"
_LOOKED_AFTER_S = 0.25
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(config: Any) -> int:
    """Serve until SIGINT or SIGTERM; accepted requests are answered before the end. Raises StageError."""
    from serve_app.entrance import Listening
    from serve_app.logs import relayed

    if config.host not in _LOOPBACK and config.keys is None and not config.open:
        raise StageError(f"--host {config.host}: other machines could ask; give --keys FILE, or --open to let anyone")
    try:
        listening = Listening(config.host, config.port)
    except OSError as error:
        raise StageError(f"--host {config.host} --port {config.port}: {error.strerror}; choose another") from error
    with contextlib.closing(listening):
        if config.metrics_port is not None:
            _check_free(config.metrics_port, f"--metrics-port {config.metrics_port}")
        with relayed(config.log_format):  # before Ray starts, whose processes have this one's environment
            _serve(config, listening)
    return 0


def _check_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise StageError(f"{option}: {error.strerror}; choose another") from error


def _serve(config: Any, listening: Listening) -> None:
    from serve_app.access import read_access
    from vig_ray.cluster import machines, parse_range
    from vig_ray.model.checkpoint import is_local, local_folder

    # Wrong options are reported before anything starts, where that takes no library that loads for seconds.
    sizes = parse_range(config.prepare_workers)
    access = read_access(config, processes=sizes[1])
    for folder in filter(is_local, config.models.values()):
        local_folder(folder, weights=False)
    engines = 1 if config.models_a_worker else len(config.models)
    actors = parse_range(config.workers)[1] * engines + sizes[1]
    with (
        ThreadPoolExecutor(1) as beside,
        _beside(beside.submit(_formatters, config)) as loading,
        # One process more than the actors have, for Ray Serve's controller.
        machines(None, actors=actors, metrics_port=config.metrics_port, spare_cpus=1) as ray_has,
    ):
        gpus_here = None if ray_has.cores is None else ray_has.gpus
        _answer(config, access, listening, loading.result(), gpus_here)


@contextlib.contextmanager
def _beside(loading: Future[Any]) -> Iterator[Future[Any]]:
    """What is loaded beside a Ray that starts; what was wrong with it comes before what is wrong with that."""
    try:
        yield loading
    except Exception:
        loading.result()
        raise


def _formatters(config: Any) -> dict[str, Any]:
    """What makes the prompts of each model, by name. Raises StageError."""
    from serve_app.models import prompts_for
    from vig_ray.model.load import load_formatter, tell

    loaded = {}
    for name, folder in config.models.items():
        loaded[name] = load_formatter(*prompts_for(config, name))
        tell(folder, loaded[name])
    log.info("loading %s", ", ".join(config.models.values()))
    return loaded


def _answer(
    config: Any, access: Access, listening: Listening, formatters: Mapping[str, Any], gpus_here: int | None
) -> None:
    """Serve on the Ray of this process until a signal comes. Raises StageError."""
    from ray import serve

    from serve_app.app import deployments
    from serve_app.entrance import Entrances
    from serve_app.ready import wait_until_ready

    quiet = {"log_level": "ERROR", "enable_access_log": False}
    application = deployments(config, gpus_here=gpus_here, formatters=formatters)
    scorers = application.scorers
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config=quiet)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # One application each, since a name is a deployment's only within its application.
    bound = list({id(scorer): scorer for scorer in scorers.values()}.values())
    targets = [
        serve.RunTarget(target=scorer, name=f"{_APPLICATION}-{number}", route_prefix=None, logging_config=quiet)
        for number, scorer in enumerate(bound)
    ]
    started = serve.run_many(targets, wait_for_applications_running=False)
    handles = {name: started[bound.index(scorer)] for name, scorer in scorers.items()}
    # Beside the scorers: all load the same libraries, which takes longer than the rest.
    entrances = Entrances(config, access, application.identities, handles, at=listening)
    entrances.wait_until_ready()
    for number in range(len(bound)):
        _wait_for(f"{_APPLICATION}-{number}")
    wait_until_ready(config.host, config.port)
    stop = threading.Event()

    def on_signal(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C doesn't wait

    for stop_signal in (signal.SIGINT, signal.SIGTERM):  # now: Ray has set handlers of its own
        signal.signal(stop_signal, on_signal)
    shown = f"[{config.host}]" if ":" in config.host else config.host
    print(f"http://{shown}:{config.port}", flush=True)
    log.info("ready; Ctrl-C stops")
    while not stop.wait(1):
        entrances.follow_the_load()
    log.info("stopping; accepted requests are answered first")
    entrances.drain()
    serve.shutdown()


def _wait_for(application: str) -> None:
    """Until the scorers of an application are there. Raises StageError where they can't be."""
    from ray import serve

    # Asked for its state again and again Ray Serve would take the time from what it waits for.
    while (told := serve.status().applications[application]).status != "RUNNING":
        if told.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            cause = [line for line in told.message.strip().splitlines() if line.strip()][-1:]
            raise StageError(f"no engine could begin: {''.join(cause).strip()[:300]}")
        time.sleep(_LOOKED_AFTER_S)


VERB = Verb("score samples over HTTP, with a page to look at", "serve_app.options:ServeConfig", "serve_app.command:run")
