"""How many rows a stage's engines have done: progress, rates and metrics. Nothing that is written depends on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.metrics import Counter

from vig_ray.cluster import alive
from vig_ray.progress import RowProgress

_EVENTS_KEPT = 1024
_LOOK_FOR_MACHINES_S = 5.0


# A call that finds it being restarted elsewhere waits for that: what is written doesn't depend on it.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class RowCounter:
    """An actor that a stage's engines report to; a batch that is retried counts twice.

    `stage`: the stage's name, "score" say; it stands in the metrics' names.

    It tells Ray's metrics as well, on the metrics port of the driver's machine, with `ray_` before the names.
    """

    def __init__(self, stage: str) -> None:
        self._metrics = {
            "rows": Counter(f"vig_{stage}_rows", "Rows done by the job, failed ones included."),
            "tokens": Counter(f"vig_{stage}_tokens", "Answer tokens of the rows that are done."),
            "failed": Counter(f"vig_{stage}_failed_rows", "Rows that have an error instead of a result."),
            "starts": Counter(f"vig_{stage}_engine_starts", "Engines loaded; beyond the pool's size: restarts."),
            "deaths": Counter(f"vig_{stage}_engine_deaths", "Engines that died under a row or a batch."),
        }
        self._rows, self._ready = 0, 0.0
        self._engine = ""
        self._deaths, self._cause = 0, ""
        self._blocks_in_a_row, self._rows_in_a_row = 0, 0  # what engines died over since a row was scored last
        self._deaths_of: dict[str, int] = {}
        self._fatal: dict[str, str] = {}
        self._events: list[tuple[float, int]] = []
        self._prompt_tokens, self._cached_tokens = 0, 0

    def ready(self, engine: str) -> None:
        """An engine is loaded; `engine` describes it."""
        self._metrics["starts"].inc()
        self._ready = self._ready or time.time()
        self._engine = engine

    def died(self, cause: str, block: str, row: str | None) -> tuple[int, int]:
        """An engine has died over a block, named by its first key; over one row of it, where they were run singly.

        Returns how many have died since a row was scored last: over blocks, and over single rows. A row that is found
        to kill engines explains the deaths over its block, so those are counted anew.
        """
        self._metrics["deaths"].inc()
        self._deaths += 1
        self._cause = cause
        self._deaths_of[block] = self._deaths_of.get(block, 0) + 1
        if row is None:
            self._blocks_in_a_row += 1
        else:
            self._fatal[row] = cause
            self._blocks_in_a_row = 0
            self._rows_in_a_row += 1
        return self._blocks_in_a_row, self._rows_in_a_row

    def history(self, block: str) -> tuple[int, dict[str, str]]:
        """How many engines died over a block, and the rows, of any block, that killed one by themselves: key, cause."""
        return self._deaths_of.get(block, 0), self._fatal

    def add(self, rows: int, *, tokens: int, failed: int, by_engine: bool, prefixes: tuple[int, int] = (0, 0)) -> None:
        """So many more rows are done, with answer tokens or an error; `by_engine`: an engine has lived through them.

        `prefixes`: prompt tokens, and those of them that a prefix cache had.
        """
        for name, value in (("rows", rows), ("tokens", tokens), ("failed", failed)):
            if value:
                self._metrics[name].inc(value)
        self._rows += rows
        self._prompt_tokens += prefixes[0]
        self._cached_tokens += prefixes[1]
        if by_engine:
            self._blocks_in_a_row = self._rows_in_a_row = 0
        self._events.append((time.time(), self._rows))
        if len(self._events) > _EVENTS_KEPT:
            self._events = self._events[::2]

    def seen(self) -> dict[str, Any]:
        """Rows scored since this job began, the engine's description, engines that died and why the last one did."""
        return {"rows": self._rows, "engine": self._engine, "deaths": self._deaths, "cause": self._cause}

    def timing(self) -> dict[str, Any]:
        """When the first engine was ready, and how many rows were scored when (seconds since the epoch); what a prefix
        cache had, where the engines have one."""
        prefixes = {"prompt_tokens": self._prompt_tokens, "cached_prompt_tokens": self._cached_tokens}
        return {
            "engine": self._engine,
            "engine_deaths": self._deaths,
            "first_engine": self._ready,
            "rows_over_time": self._events,
            **(prefixes if self._prompt_tokens else {}),
        }


@contextmanager
def shown(counter: Any, stage: str, total: int, done: int) -> Iterator[None]:
    """Show a counter's progress while a stage runs: `done` rows of `total` were done before."""
    stop = threading.Event()

    def follow(bar: RowProgress) -> None:
        engine, deaths, ended = "", 0, False
        rows, of_earlier = 0, 0
        machines, looked = alive(), time.monotonic()
        while not ended:
            ended = stop.wait(0.5)
            try:
                seen = ray.get(counter.seen.remote(), timeout=5)
                now = alive() if time.monotonic() > looked + _LOOK_FOR_MACHINES_S else machines
            except (ray.exceptions.RayError, RuntimeError, OSError):  # it is being restarted, or the head is busy
                continue
            if seen["rows"] < rows:  # it was restarted, and began to count anew
                of_earlier += rows
                deaths = 0
            rows = seen["rows"]
            bar.update(done + of_earlier + rows)
            if seen["engine"] not in ("", engine):
                engine = seen["engine"]
                bar.say(f"engine: {engine}")
            if seen["deaths"] > deaths:
                deaths = seen["deaths"]
                bar.say(f"an engine died; another is started: {seen['cause']}")
            if time.monotonic() > looked + _LOOK_FOR_MACHINES_S:
                looked = time.monotonic()
                if now != machines:
                    bar.say(f"machines: {now}, before {machines}")
                    machines = now

    with RowProgress(stage, total, done=done) as bar:
        follower = threading.Thread(target=follow, args=(bar,), daemon=True)
        follower.start()
        try:
            yield
            bar.update(total)
        finally:
            stop.set()
            follower.join(timeout=5)
