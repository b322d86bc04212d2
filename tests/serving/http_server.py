"""The application behind a real HTTP server: in this process, or in one of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvicorn

from serve_app.access import Access
from serve_app.api import Api
from serve_app.http import settings
from serve_app.keys import plain_keys
from serve_app.options import AppConfig
from serve_app.routes import make_app
from tests import forks
from tests.serving.conftest import LocalBackend
from vig_ray.demo import CHECKPOINT


class Served:
    """The application on a port of this machine, with the engine in this process. `send_buffer`: of each connection.
    `keys`: plain ones; `keys_file`: --keys."""

    def __init__(
        self, engine: Any, formatter: Any, keys: str = "", *, send_buffer: int = 0, keys_file: str | None = None,
        access: Access | None = None, **options: Any,
    ) -> None:  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = AppConfig(**{"model": f"demo={CHECKPOINT}", "tau": 0.3, "keys": keys_file} | options)
        access = access or Access(plain_keys(keys) if keys else None)
        self.api = Api(config, formatter, LocalBackend(engine), access)
        app = make_app(self.api)
        self._server = uvicorn.Server(settings(app, seconds=self.api.config.timeout, port=self.port))
        listening = socket.create_server(("127.0.0.1", self.port))
        if send_buffer:  # bytes that the kernel takes of an answer before its client does
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        serve = self._server.serve
        self._thread = threading.Thread(target=lambda: asyncio.run(serve(sockets=[listening])), daemon=True)
        self._thread.start()
        end = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.05)

    def connections(self) -> int:
        """Those that are open."""
        return len(self._server.server_state.connections)

    def tasks(self) -> int:
        """Requests that are worked on."""
        return len(self._server.server_state.tasks)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


class ServedAlone:
    """The application in a process of its own, whose memory can be read."""

    def __init__(self, **options: Any) -> None:
        ours, its = multiprocessing.Pipe()
        self._process = forks.begun(_serve, options, its)
        its.close()
        self._pipe = ours
        self.url = ours.recv()

    @property
    def peak_memory(self) -> int:
        """The most resident memory that the process has had so far, bytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def stop(self) -> None:
        self._pipe.send(None)
        self._process.join(30)


def _serve(options: dict[str, Any], pipe: Connection) -> None:
    """Send the address once it listens, and end with the next message."""
    from vig_ray.model.load import load_formatter, load_model
    from vig_ray.scoring.engines.torch import TorchEngine

    formatter = load_formatter(CHECKPOINT)
    engine = TorchEngine(load_model(CHECKPOINT, dtype="float32", device="cpu"), formatter.collate)
    pipe.send(Served(engine, formatter, **options).url)
    pipe.recv()
