"""`vig serve` in a process of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import psutil
import pytest

from tests import prefork
from tests.end_to_end.conftest import ROOT
from vig_ray.demo import CHECKPOINT


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(what: Callable[[], Any], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


class Server:
    """`vig serve` with these options, once it is ready. `answered`: what `post` was answered, by route and status."""

    def __init__(self, *options: object, **environment: str) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.answered: Counter[tuple[str, int]] = Counter()
        words = ["serve", "--model", CHECKPOINT, "--port", port, *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vig_ray.cli", *map(str, words)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.strip() == self.url, self.process.stderr.read() if self.process.stderr else ""

    def stop(self) -> str:
        """Stop it; what it said on standard error."""
        self.process.terminate()
        assert self.process.wait(60) == 0
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def post(self, path: str, body: Any) -> httpx.Response:
        answer = httpx.post(self.url + path, json=body, timeout=300)
        self.answered[path, answer.status_code] += 1
        return answer

    def replicas(self, name: str) -> list[psutil.Process]:
        found = []
        for process in prefork.descendants(self.process.pid):
            try:
                if f":{name}" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found


class Measured(Server):
    """A server whose metrics are read, every second anew."""

    def __init__(self, *options: object, **environment: str) -> None:
        self._metrics = f"http://127.0.0.1:{(port := free_port())}/metrics"
        super().__init__("--metrics-port", port, *options, RAY_metrics_report_interval_ms="1000", **environment)

    def metric(self, name: str, **tags: str) -> float:
        """The sum of a metric over processes, where these tags are as given."""
        total = 0.0
        for line in httpx.get(self._metrics, timeout=60).text.splitlines():
            match = re.match(rf"ray_{name}(\{{.*\}})? (\S+)$", line)
            if match and all(f'{tag}="{value}"' in (match[1] or "") for tag, value in tags.items()):
                total += float(match[2])
        return total


def assert_as_scored(answer: httpx.Response, row: dict[str, Any]) -> None:
    """The answer holds the numbers of the batch job's row."""
    found = answer.json()
    assert found["vig"] == pytest.approx(row["vig"], abs=1e-5)
    assert [token["id"] for token in found["tokens"]] == row["token_ids"]
    for name, column in (("clean", "clean_logprobs"), ("reference", "blur_logprobs")):
        ours = [token[f"{name}_logprob"] for token in found["tokens"]]
        assert ours == pytest.approx(row[column], abs=1e-5)
