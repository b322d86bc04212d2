"""The application behind a real HTTP server: in this process, or `python -m tests.serving.http_server OPTIONS` alone.

OPTIONS: of `AppConfig`, as JSON. It prints its address once it listens, and stops when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn

from serve_app.api import Api
from serve_app.auth import key_hashes
from serve_app.options import AppConfig
from serve_app.routes import make_app
from tests.serving.conftest import LocalBackend
from vig_ray.demo import CHECKPOINT

ROOT = Path(__file__).parents[2]


class Served:
    """The application on a port of this machine, with the engine in this process."""

    def __init__(self, engine: Any, formatter: Any, keys: str = "", **options: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.api = Api(AppConfig(**{"model": CHECKPOINT, "tau": 0.3} | options), formatter, LocalBackend(engine))
        app = make_app(self.api, hashes=key_hashes(keys))
        self._server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="critical"))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()), daemon=True)
        self._thread.start()
        end = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


class ServedAlone:
    """The application in a process of its own, whose memory can be read."""

    def __init__(self, **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.serving.http_server", json.dumps(options)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    @property
    def peak_memory(self) -> int:
        """The most resident memory that the process has had so far, bytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def main() -> None:
    from vig_ray.model.load import load_formatter, load_model
    from vig_ray.scoring.engines.torch import TorchEngine

    formatter = load_formatter(CHECKPOINT)
    engine = TorchEngine(load_model(CHECKPOINT, dtype="float32", device="cpu"), formatter.collate)
    print(Served(engine, formatter, **json.loads(sys.argv[1])).url, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
