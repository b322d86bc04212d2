"""How long the rest of a study takes, by what its stages took so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from vig_ray.progress import duration
from vig_ray.study.graph import Node
from vig_ray.study.rates import Rates
from vig_ray.study.runner import Progress


@dataclass(frozen=True)
class Left:
    """Seconds that are left at least; `unknown`: the stages of which there is no telling yet."""

    seconds: float
    unknown: tuple[str, ...]

    def text(self) -> str:
        """For a person."""
        if not self.unknown:
            return f"about {duration(self.seconds)} left"
        take = "take" if len(self.unknown) > 1 else "takes"
        why = f"how long {', '.join(self.unknown)} {take} isn't known before one has run"
        return f"at least {duration(self.seconds)} left: {why}" if self.seconds else why


def time_left(nodes: Sequence[Node], progress: Progress, rates: Rates, lanes: int | None) -> Left:
    """Of these nodes, each after what it takes, `lanes` side by side, by default as many as run now: all that is left
    divided by them, and at least what the longest chain of stages that need each other takes."""
    now, total = time.monotonic(), 0.0
    chain: dict[str, float] = {}
    unknown: dict[str, None] = {}
    for node in nodes:
        before = max((chain.get(name, 0.0) for name in node.inputs), default=0.0)
        chain[node.name] = before
        if node.name in progress.records or node.name in progress.without:
            continue
        estimate = rates.of(node.name)
        if estimate is None:
            unknown.setdefault(node.stage)
            continue
        seconds = estimate.seconds
        if node.name in progress.running:
            seconds = max(0.0, seconds - (now - progress.running[node.name]))
        total += seconds
        chain[node.name] = before + seconds
    side_by_side = max(1, lanes if lanes is not None else len(progress.running))
    return Left(max(total / side_by_side, *chain.values(), 0.0), tuple(unknown))
