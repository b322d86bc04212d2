"""How many rows the engines have scored, for progress and rates; nothing that is written depends on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from vig_ray.progress import RowProgress

_EVENTS_KEPT = 1024


@ray.remote(num_cpus=0, max_restarts=-1)
class RowCounter:
    """An actor that the scorers report to; a batch that is retried counts twice."""

    def __init__(self) -> None:
        self._rows, self._ready = 0, 0.0
        self._events: list[tuple[float, int]] = []

    def ready(self) -> None:
        """An engine is loaded."""
        self._ready = self._ready or time.time()

    def add(self, rows: int) -> None:
        """So many more rows are scored."""
        self._rows += rows
        self._events.append((time.time(), self._rows))
        if len(self._events) > _EVENTS_KEPT:
            self._events = self._events[::2]

    def total(self) -> int:
        """Rows scored since this job began."""
        return self._rows

    def timing(self) -> dict[str, Any]:
        """When the first engine was ready, and how many rows were scored when (seconds since the epoch)."""
        return {"first_engine": self._ready, "rows_over_time": self._events}


@contextmanager
def shown(counter: Any, total: int, done: int) -> Iterator[None]:
    """Show a counter's progress while a job runs: `done` rows of `total` were scored before."""
    stop = threading.Event()

    def follow(bar: RowProgress) -> None:
        while not stop.wait(0.5):
            try:
                bar.update(done + ray.get(counter.total.remote(), timeout=5))
            except ray.exceptions.RayError:  # it is being restarted elsewhere
                continue

    with RowProgress("score", total, done=done) as bar:
        follower = threading.Thread(target=follow, args=(bar,), daemon=True)
        follower.start()
        try:
            yield
            bar.update(total)
        finally:
            stop.set()
            follower.join(timeout=5)
