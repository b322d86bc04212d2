"""What a study's rows cost against what they reach, and the frontier of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from vig_ray.report.study_numbers import Metric, Row, StudyNumbers


class Measure(NamedTuple):
    """Something that a row costs: its name in study.json, and in words."""

    name: Literal["tokens", "seconds"]
    words: str

    def of(self, row: Row) -> float | None:
        """The mean over seeds; None of a row without training, or without numbers."""
        by_seed = getattr(row, self.name)
        return sum(by_seed.values()) / len(by_seed) if by_seed else None


MEASURES = (Measure("tokens", "tokens trained on"), Measure("seconds", "seconds of training"))


class Point(NamedTuple):
    """A row by what it costs and what it reaches."""

    row: Row
    cost: float
    quality: float


def points(study: StudyNumbers, metric: Metric, measure: Measure) -> list[Point]:
    """The rows that have both, in the study's order."""
    found = []
    for row in study.rows:
        cost, quality = measure.of(row), row.numbers[metric.name].mean.value
        if cost is not None and quality is not None:
            found.append(Point(row, cost, quality))
    return found


def frontier(some: Sequence[Point], *, higher_is_better: bool) -> list[Point]:
    """Those for which no other has at least the quality for at most the cost, the cheapest first; of several that are
    equal in both, all."""
    sign = 1 if higher_is_better else -1
    best: list[Point] = []
    for point in sorted(some, key=lambda one: (one.cost, -sign * one.quality)):
        if not best or sign * point.quality > sign * best[-1].quality or point[1:] == best[-1][1:]:
            best.append(point)
    return best


def frontiers(study: StudyNumbers) -> dict[str, dict[str, list[str]]]:
    """The labels of the rows on each frontier, by metric and by what they cost."""
    return {
        metric.name: {
            measure.name: [
                point.row.label
                for point in frontier(points(study, metric, measure), higher_is_better=metric.higher_is_better is True)
            ]
            for measure in MEASURES
        }
        for metric in study.ranked
    }
