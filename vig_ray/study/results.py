"""What the numbers of a study's cells say: means over seeds, differences from the baseline, orders, and what they cost.

All of it is in OUT/study.json, which `vig report --study` shows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vig_ray.study.curves import SHORT_TUNING, share_taken
from vig_ray.study.file import Order, StudyFile
from vig_ray.study.given import strings_in
from vig_ray.study.graph import MODEL_NAME, Cell, Graph, label_of
from vig_ray.study.record import Record
from vig_ray.study.statistics import CONFIDENCE, Difference, Mean, ScalingLaw, difference, mean_of, scaling_law

Json = dict[str, Any]

RUNGS = (0.25, 0.5, 1.0)
"""Of a search: the shares of a training's steps at which the better half goes on."""


class Metric(NamedTuple):
    """A number of a task, TASK.METRIC. `higher_is_better`: None where it is neither."""

    name: str
    percent: bool
    higher_is_better: bool | None

    def text(self, value: float | None, *, sign: bool = False) -> str:
        """A value for people: shares times 100."""
        if value is None or not math.isfinite(value):
            return "–"
        digits = 1 if self.percent else 3
        return f"{100 * value if self.percent else value:{'+' if sign else ''}.{digits}f}"


@dataclass(frozen=True)
class Row:
    """An arm, with one value of each of what is varied. `values`: by metric and seed; `tokens` trained on and the
    training's `seconds`, without a short tuning's: by seed. `runs`: the evaluation of each seed, which may be one for
    several."""

    label: str
    arm: str
    axes: Mapping[str, Any]
    values: Mapping[str, Mapping[int, float]]
    tokens: Mapping[int, int]
    seconds: Mapping[int, float]
    runs: Mapping[int, str]

    def mean(self, metric: str) -> Mean:
        """Over seeds; one run counts once."""
        return mean_of(list({self.runs[seed]: value for seed, value in self.values[metric].items()}.values()))


def apart(ours: Row, theirs: Row, metric: str, confidence: float = CONFIDENCE) -> Difference:
    """The difference of two rows, over the seeds that both have; two runs are one pair, however many seeds they are."""
    one, other = ours.values[metric], theirs.values[metric]
    pairs = {
        (ours.runs[seed], theirs.runs[seed]): (one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())
    }
    return difference(list(pairs.values()), confidence)


class Step(NamedTuple):
    """One step of an order: `high` is said to have more than `low`. `said`: "yes" or "no" where that is settled."""

    low: str
    high: str
    difference: Difference

    @property
    def said(self) -> str:
        """Whether it holds."""
        if not self.difference.settled:
            return "open"
        return "yes" if self.difference.mean.value > 0 else "no"


@dataclass(frozen=True)
class Claim:
    """An order and its steps. A settled step against it refutes the whole, an open one leaves it open."""

    order: Order
    steps: tuple[Step, ...]

    @property
    def said(self) -> str:
        """Of the whole order."""
        found = [step.said for step in self.steps]
        return "no" if "no" in found else "open" if "open" in found else "yes"


@dataclass(frozen=True)
class Scaled:
    """A scaling law of one arm: fitted to all sizes but the largest. `predicted` and `found` loss of that one."""

    arm: str
    law: ScalingLaw
    sizes: tuple[float, ...]
    largest: float
    predicted: float
    found: float

    @property
    def error(self) -> float:
        """Relative, of the prediction."""
        return abs(self.predicted - self.found) / self.found


@dataclass(frozen=True)
class Tried:
    """One value of one arm: its number at each rung that it came to."""

    label: str
    rungs: tuple[float, ...]

    @property
    def survived(self) -> bool:
        """Whether it came to full length."""
        return len(self.rungs) == len(RUNGS)


@dataclass(frozen=True)
class Results:
    """A study's numbers. `failed`: stages that failed; `missing`: cells without a number, and why. `pilot`: the per
    cent of the data that it is of, None for all. `trials`: of a search before it."""

    study: StudyFile
    out: str
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    baseline: str
    claims: tuple[Claim, ...]
    scaled: tuple[Scaled, ...]
    failed: tuple[Record, ...]
    missing: Mapping[str, str]
    cost: Json
    pilot: float | None = None
    trials: tuple[Tried, ...] = ()

    def difference(self, row: Row, metric: str) -> Difference:
        """From the baseline, in pairs of seeds."""
        return apart(row, self.base_of(row), metric)

    def base_of(self, row: Row) -> Row:
        """What a row is compared with: of a varied baseline the row with the same values, as far as it has them."""
        (first,) = (each for each in self.rows if each.label == self.baseline)
        same = [
            each
            for each in self.rows
            if each.arm == first.arm and all(row.axes.get(name, value) == value for name, value in each.axes.items())
        ]
        return same[0] if same else first


def asked_for(study: StudyFile) -> list[str]:
    """The numbers that a study names, as TASK.METRIC."""
    of_orders = [Order.parse(text).metric for text in study.orders]
    return [*study.measured, *of_orders, *([study.scaling.of] if study.scaling else [])]


def gather(study: StudyFile, graph: Graph, cells: Sequence[Cell], records: Mapping[str, Record], out: str,
           missing: Mapping[str, str], cost: Json, pilot: float | None) -> Results:  # fmt: skip
    """The results of the cells that have ended."""
    tables = {cell: records[cell.last].table for cell in cells if cell.last in records and records[cell.last].done}
    metrics = _metrics(study, [table for table in tables.values() if table is not None])
    labels = dict.fromkeys(cell.label for cell in cells)
    rows = tuple(_row(label, [cell for cell in cells if cell.label == label], tables, metrics, records, graph)
                 for label in labels)  # fmt: skip
    baseline = _baseline(study, rows)
    return Results(
        study,
        out,
        metrics,
        rows,
        baseline,
        tuple(_claims(study, rows)),
        tuple(_scaled(study, rows)),
        tuple(each for each in records.values() if not each.done and each.name in graph.nodes),
        missing,
        cost,
        pilot,
    )


def _metrics(study: StudyFile, tables: Sequence[Mapping[str, Any]]) -> tuple[Metric, ...]:
    known: dict[str, Metric] = {}
    main = []
    for table in tables:
        for task in table["tasks"]:
            for each in task["metrics"]:
                name = f"{task['name']}.{each['name']}"
                known.setdefault(name, Metric(name, each["percent"], each["higher_is_better"]))
            if task["main"] is not None:
                main.append(f"{task['name']}.{task['main']}")
    wanted = dict.fromkeys((*(study.measured or main), *asked_for(study))) or known
    return tuple(known.get(name, Metric(name, percent=False, higher_is_better=None)) for name in wanted)


def _row(
    label: str,
    cells: Sequence[Cell],
    tables: Mapping[Cell, Mapping[str, Any] | None],
    metrics: Sequence[Metric],
    records: Mapping[str, Record],
    graph: Graph,
) -> Row:
    values: dict[str, dict[int, float]] = {metric.name: {} for metric in metrics}
    tokens: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for cell in cells:
        table = tables.get(cell)
        for task in table["tasks"] if table else ():
            for name, number in task["models"][MODEL_NAME]["numbers"].items():
                metric = f"{task['name']}.{name}"
                if metric in values and number["value"] is not None:
                    values[metric][cell.seed] = float(number["value"])
        spent = [_spent(records[name], cell, graph) for name in cell.nodes if _trains(records.get(name))]
        if table is not None and spent:
            tokens[cell.seed] = int(spent[-1]["tokens"])
            seconds[cell.seed] = sum(each["seconds"] for each in spent)
    return Row(label, cells[0].arm, cells[0].axes, values, tokens, seconds, {cell.seed: cell.last for cell in cells})


def _trains(record: Record | None) -> bool:
    """Whether it is of a training that a row's model comes from. A short tuning is a part of asking, alike for all."""
    return record is not None and record.tokens is not None and record.stage != SHORT_TUNING


def _spent(record: Record, cell: Cell, graph: Graph) -> Mapping[str, float]:
    """Tokens and seconds of a training, up to the share of its steps that the cell takes."""
    texts = (text for name in cell.nodes for text in strings_in(graph.nodes[name].options))
    share = share_taken(record.name, texts)
    return record.at.get(share or "", {"tokens": record.tokens or 0, "seconds": record.seconds})


def _baseline(study: StudyFile, rows: Sequence[Row]) -> str:
    """The row that others are compared with: the arm that is named, or the first; of a varied one its first."""
    arm = study.baseline or rows[0].arm
    return next((row.label for row in rows if row.arm == arm), rows[0].label)


def rows_of(name: str, rows: Sequence[Row]) -> list[Row]:
    """The rows that an order names: one by its label, or all of an arm."""
    exact = [row for row in rows if row.label == name]
    return exact or [row for row in rows if row.arm == name]


def _claims(study: StudyFile, rows: Sequence[Row]) -> Iterator[Claim]:
    """The orders; of varied arms once for each choice of values that all its arms have in common."""
    confidence = confidence_of(study)
    for text in study.orders:
        order = Order.parse(text)
        for chosen in itertools.product(*(rows_of(name, rows) for name in order.arms)):
            named = [row for name, row in zip(order.arms, chosen, strict=True) if row.label != name]
            if not _agree(named):
                continue
            steps = tuple(
                Step(low.label, high.label, apart(high, low, order.metric, confidence))
                for low, high in itertools.pairwise(chosen)
            )
            yield Claim(order, steps)


def _agree(rows: Sequence[Row]) -> bool:
    """Whether rows have the same value of whatever is varied of two of them."""
    return all(
        one.axes.get(name, value) == value
        for one, other in itertools.combinations(rows, 2)
        for name, value in other.axes.items()
    )


def confidence_of(study: StudyFile) -> float:
    """At which orders are told. Where seeds may be added to what is open, there are two looks at it, and an order that
    isn't there would be found at either: each look is at half of 5 % (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / 2 if study.more_seeds else CONFIDENCE


def _scaled(study: StudyFile, rows: Sequence[Row]) -> Iterator[Scaled]:
    """A law of each arm, and of each value of what else is varied, of means over seeds."""
    if study.scaling is None:
        return
    over, of = study.scaling.over, study.scaling.of
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if over in row.axes and row.values.get(of):
            rest = {name: value for name, value in row.axes.items() if name != over}
            groups.setdefault(label_of(row.arm, rest), []).append((float(row.axes[over]), row.mean(of).value))
    for label, points in groups.items():
        *smaller, (largest, found) = sorted(points)
        sizes, losses = [size for size, _ in smaller], [loss for _, loss in smaller]
        try:
            law = scaling_law(sizes, losses)
        except ValueError:  # too few sizes so far, or losses that have no law
            continue
        yield Scaled(label, law, tuple(sizes), largest, law.at(largest), found)
