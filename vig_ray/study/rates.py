"""How long a stage will take, by those like it that are done, here or in another study's folder: the mean of what they
took, or where they were of other sizes their seconds per sample times its samples times its epochs."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vig_ray.errors import StageError
from vig_ray.storage import absolute, join
from vig_ray.study import record as records
from vig_ray.study.graph import Node
from vig_ray.study.record import RUNS, Record
from vig_ray.study.sizes import Sizes, like, sized

_SAME_SIZE = 0.02


@dataclass(frozen=True)
class Estimate:
    """Seconds of one stage. `by`: how many that are done; `scaled`: from how many samples each, to how many; None where
    theirs are as many, or where its time doesn't go by samples."""

    seconds: float
    gpu_seconds: float
    by: int
    scaled: tuple[float, float] | None = None


class Rates:
    """What the stages of a study take, by what has been measured."""

    def __init__(self, nodes: Mapping[str, Node], known: Sequence[Record]) -> None:
        self._nodes = nodes
        self._known = [each for each in known if each.done]
        self._sizes = Sizes(nodes, self._known)
        self._found: dict[str, Estimate | None] = {}

    @classmethod
    def found(cls, nodes: Mapping[str, Node], out: str, other: str | None) -> Rates:
        """By what is done in a study's folder and, with `other`, in that of another one. Raises StageError."""
        known = records.all_of(out)
        if other is not None:
            if not os.path.isdir(absolute(join(other, RUNS))):
                raise StageError(f"--rates {other}: no {RUNS}/ there; it takes what another `vig study --out` wrote")
            here = {each.name for each in known}
            known += [each for each in records.all_of(absolute(other)) if each.name not in here]
        return cls(nodes, known)

    def add(self, record: Record) -> None:
        """One more that has ended."""
        if record.done:
            self._known.append(record)
            self._sizes = Sizes(self._nodes, self._known)
            self._found.clear()

    def of(self, name: str) -> Estimate | None:
        """Of a stage that hasn't run; None where there is no telling before one of its kind has."""
        if name not in self._found:
            node = self._nodes[name]
            estimates = (self._by(node, alike) for alike in self._tiers(node))
            self._found[name] = next((each for each in estimates if each is not None), None)
        return self._found[name]

    def _tiers(self, node: Node) -> Iterator[list[Record]]:
        """What a stage is measured by, the likest first: the same but for seeds and amounts; the same stage with other
        options; where the time goes by samples, any stage of the verb."""
        same = [each for each in self._known if each.verb == node.verb]
        of_stage = [each for each in same if each.stage == node.stage]
        kind = like(node)
        yield [each for each in same if each.like == kind]
        yield of_stage
        if sized(node.verb):
            yield same

    def _by(self, node: Node, alike: list[Record]) -> Estimate | None:
        if any(each.gpus for each in alike):  # those that ran on CPUs say nothing of them
            alike = [each for each in alike if each.gpus]
        if sized(node.verb):
            size = self._sizes.of(node.name).worked
            measured = [(each, each.size.worked) for each in alike if each.size.worked]
            if size is not None and measured:
                worked = sum(samples for _, samples in measured)
                seconds = size / worked * sum(each.seconds for each, _ in measured)
                on_gpus = size / worked * sum(each.on_gpus for each, _ in measured)
                mean = worked / len(measured)
                scaled = None if abs(size - mean) <= _SAME_SIZE * mean else (mean, size)
                return Estimate(seconds, on_gpus, len(measured), scaled)
            alike = [each for each in alike if each.name in self._nodes]  # of one size, but for what is varied
        if not alike:
            return None
        return Estimate(
            statistics.mean(each.seconds for each in alike), statistics.mean(each.on_gpus for each in alike), len(alike)
        )
