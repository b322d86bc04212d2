"""A Ray cluster's head in processes of its own, with the dashboard that takes jobs and Serve configs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.end_to_end.conftest import ROOT
from tests.end_to_end.server import free_port, wait_until

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Head:
    """Where it answers: `address` to drivers, `dashboard` to HTTP."""

    address: str
    dashboard: str

    def serve(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run `serve WORDS`."""
        script = str(Path(RAY).with_name("serve"))
        environment = os.environ | {"RAY_ADDRESS": self.dashboard, "RAY_DASHBOARD_ADDRESS": self.dashboard}
        return subprocess.run(
            [script, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )


@contextmanager
def head(*, cpus: int = 12) -> Iterator[Head]:
    """`ray start --head`, as long as the context lasts."""
    port, dashboard = free_port(), free_port()
    words = ["start", "--head", "--block", "--port", port, "--dashboard-port", dashboard, "--num-cpus", cpus,
             "--include-dashboard", "true", "--disable-usage-stats", "--object-store-memory", 300 * 2**20,
             "--ray-client-server-port", free_port(), "--dashboard-agent-listen-port", free_port(),
             "--min-worker-port", 0, "--max-worker-port", 0]  # fmt: skip
    process = subprocess.Popen(
        [RAY, *map(str, words)], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    found = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")

    def answers() -> bool:
        assert process.poll() is None, "ray start ended"
        try:
            return httpx.get(f"{found.dashboard}/api/version").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(answers)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
