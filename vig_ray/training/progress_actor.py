"""What the job knows of its workers while they train: their progress, and why one gave up for good."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from vig_ray.progress import RowProgress
from vig_ray.training.metrics import line_of


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class ProgressActor:
    """An actor that the first worker reports to.

    It tells Ray's metrics as well, on the metrics port of the driver's machine, with `ray_` before the names.
    """

    def __init__(self) -> None:
        self._starts = Counter("vig_train_starts", "Groups of workers that began; beyond one: losses and resizes.")
        self._step = Gauge("vig_train_step", "Optimizer steps done.")
        self._gauges: dict[str, Gauge] = {}
        self._seen: dict[str, Any] = {
            "starts": 0,
            "workers": "",
            "steps": None,
            "done": 0,
            "from": 0,
            "figures": {},
            "checked": None,
        }
        self._fatal: tuple[str, list[str]] | None = None

    def started(self, done: int, steps: int, workers: str) -> None:
        """Workers begin, after `done` of `steps` steps."""
        self._starts.inc()
        self._step.set(done)
        self._seen |= {
            "starts": self._seen["starts"] + 1,
            "workers": workers,
            "steps": steps,
            "done": done,
            "from": done,
        }

    def checked(self, done: int, total: int) -> None:
        """So many samples of `total` have had their tokens compared."""
        self._seen["checked"] = done, total

    def step(self, done: int, figures: Mapping[str, float]) -> None:
        """So many steps are done; the last one's figures."""
        self._step.set(done)
        for name, value in figures.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(metric(name), f"The last step's {name}, as in TensorBoard.")
            self._gauges[name].set(value)
        self._seen |= {"done": done, "figures": dict(figures), "checked": None}

    def seen(self) -> dict[str, Any]:
        """All of that."""
        return self._seen

    def give_up(self, why: str, keys: list[str]) -> None:
        """Nothing can come of trying again; `keys`: the samples that it is about."""
        self._fatal = self._fatal or (why, keys)

    def given_up(self) -> tuple[str, list[str]] | None:
        """Why, and the samples that it is about; None where nobody gave up."""
        return self._fatal


class ByActor:
    """What `metrics.Shown` asks for, told to the actor without waiting for it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def started(self, done: int, steps: int, workers: str) -> None:
        """See `metrics.Shown`."""
        self._actor.started.remote(done, steps, workers)

    def checked(self, done: int, total: int) -> None:
        """See `metrics.Shown`."""
        self._actor.checked.remote(done, total)

    def step(self, done: int, figures: Mapping[str, float]) -> None:
        """See `metrics.Shown`."""
        self._actor.step.remote(done, figures)


def metric(figure: str) -> str:
    """A figure's name among the metrics: "train/loss" is vig_train_loss, "speed/mfu" is vig_train_speed_mfu."""
    return f"vig_train_{figure.removeprefix('train/').replace('/', '_')}"


@contextmanager
def shown(progress_actor: Any, steps: int) -> Iterator[None]:
    """Show what the actor knows while a job runs."""
    stop = threading.Event()

    def follow(bar: RowProgress) -> None:
        starts, ended = 0, False
        while not ended:
            ended = stop.wait(0.5)
            try:
                seen = ray.get(progress_actor.seen.remote(), timeout=5)
            except ray.exceptions.RayError:
                continue
            if seen["starts"] > starts:
                starts = seen["starts"]
                bar.say(f"{'going on' if seen['from'] else 'training'} at step {seen['from']:,}: {seen['workers']}")
                bar.restart(seen["from"])
            note = line_of(seen["figures"])
            if seen["checked"]:
                note = f"comparing tokens: {seen['checked'][0]:,} of {seen['checked'][1]:,} samples"
            bar.update(seen["done"], note)

    with RowProgress("train", steps, units="steps") as bar:
        follower = threading.Thread(target=follow, args=(bar,), daemon=True)
        follower.start()
        try:
            yield
        finally:
            stop.set()
            follower.join(timeout=5)
