"""`vig serve`: the application on this machine, until a signal stops it."""

from __future__ import annotations

import logging
import signal
import threading
import time
from typing import Any

from vig_ray.cli import Verb
from vig_ray.errors import StageError

log = logging.getLogger("vig_ray.serve")

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_DRAINING = "Draining"


def run(config: Any) -> int:
    """Serve until SIGINT or SIGTERM; accepted requests are answered before the end. Raises StageError."""
    if config.host not in _LOOPBACK and config.keys is None and not config.open:
        raise StageError(f"--host {config.host}: other machines could ask; give --keys FILE, or --open to let anyone")
    _check_free(config.host, config.port, f"--host {config.host} --port {config.port}")
    if config.metrics_port is not None:
        _check_free("", config.metrics_port, f"--metrics-port {config.metrics_port}")
    _serve(config)
    return 0


def _check_free(host: str, port: int, option: str) -> None:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StageError(f"{option}: {error.strerror}; choose another") from error


def _serve(config: Any) -> None:
    from ray import serve

    from serve_app.access import read_access
    from serve_app.app import deployments
    from serve_app.draining import Draining
    from serve_app.ready import wait_until_ready
    from vig_ray.cluster import machines, parse_range
    from vig_ray.compat.ray import replicas_left
    from vig_ray.model.load import load_formatter, prompts_of, tell

    actors = sum(parse_range(spelled)[1] for spelled in (config.workers, config.prepare_workers))
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    # Wrong options are reported before anything starts.
    read_access(config)
    tell(config.model, load_formatter(*prompts_of(config)))
    log.info("loading %s", config.model)
    with machines(None, actors=actors, metrics_port=config.metrics_port) as ray_has:
        gpus_here = None if ray_has.cores is None else ray_has.gpus
        scorer, ingress = deployments(config, gpus_here=gpus_here)
        listening = {"host": config.host, "port": config.port}
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(proxy_location="HeadOnly", http_options=listening, logging_config=quiet)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        # Two applications, so that the ingress can finish what it has accepted while the scorer is still there.
        handle = serve.run(scorer, name="scorer", route_prefix=None, logging_config=quiet)
        serve.run(ingress(handle), name="vig", logging_config=quiet)
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
        stop.wait()
        log.info("stopping; accepted requests are answered first")
        draining = serve.deployment(Draining).options(name=_DRAINING, ray_actor_options={"num_cpus": 0})
        serve.run(draining.bind(), name="vig", logging_config=quiet)
        end = time.monotonic() + config.timeout + 10  # no request takes longer
        while replicas_left("vig", besides=_DRAINING) and time.monotonic() < end:
            time.sleep(0.1)
        serve.shutdown()


VERB = Verb("score samples over HTTP, with a page to look at", "serve_app.options:ServeConfig", "serve_app.command:run")
