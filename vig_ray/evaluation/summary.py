"""The table of an evaluation: models by tasks, with intervals, differences and relative performance; text and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vig_ray.evaluation.outcomes import OfTask
from vig_ray.evaluation.statistics import Estimate, estimate, relative, relatives
from vig_ray.evaluation.task import Metric

Json = dict[str, Any]
_WIDTH = 120
_MOST_FAILURES = 5


@dataclass(frozen=True)
class Relative:
    """A model's average relative performance: the mean over tasks of what `relative` says of their main metrics.

    `of_task`: each task's, NaN where there is none, which the average leaves out, as it does parts of other tasks.
    `undrawn`: those of the average that have no draws, for which it has no interval.
    """

    mean: Estimate
    of_task: Mapping[str, Estimate]
    undrawn: tuple[str, ...] = ()


def relative_performance(tasks: Sequence[OfTask], model: str) -> Relative:
    """Of a model to the baseline; both on the questions that both have marks of. Draws of tasks are independent."""
    of_task, values, drawn, undrawn = {}, [], [], []
    for task in tasks:
        one, metric = task.models[model], task.main
        if metric is None:
            continue
        value = relative(metric, one.on_common.values[metric.name], one.baseline_on_common.values[metric.name])
        draws = None
        if metric.name in one.on_common.draws:
            draws = relatives(metric, one.on_common.draws[metric.name], one.baseline_on_common.draws[metric.name])
        of_task[task.name] = estimate(value, draws)
        if math.isfinite(value) and not task.part:
            values.append(value)
            if draws is None:
                undrawn.append(task.name)
            else:
                drawn.append(draws)
    mean = float(np.mean(values)) if values else math.nan
    whole = drawn and not undrawn  # the draws of some are those of another average
    return Relative(estimate(mean, np.mean(drawn, axis=0) if whole else None), of_task, tuple(undrawn))


@dataclass(frozen=True)
class EvalSummary:
    """An evaluation's numbers. `models`: by name, their checkpoints; `directory`: OUT/evaluation.

    `told`: lines about tasks and their numbers; `without`: how many of lmms-eval's no model has a number of.
    """

    directory: str
    models: Mapping[str, str]
    baseline: str
    tasks: tuple[OfTask, ...]
    draws: int
    seed: int
    told: tuple[str, ...] = ()
    without: int = 0

    @property
    def failed(self) -> int:
        """Questions without marks, of all models, and tasks without any."""
        return sum(one.failures.total() for task in self.tasks for one in task.models.values()) + self.without

    def relatives(self) -> dict[str, Relative]:
        """By model but for the baseline."""
        return {name: relative_performance(self.tasks, name) for name in self.models if name != self.baseline}

    def text(self) -> str:
        """For a person."""
        lines = [*_table(self), *self._notes(), *self._failures(), *self.told]
        return "\n".join([*lines, f"evaluation: {self.directory}"])

    def _notes(self) -> Iterator[str]:
        yield "questions: " + ", ".join(
            f"{task.name} {task.questions:,}" + (f" in {task.units:,} units" if task.units < task.questions else "")
            for task in self.tasks
        )
        if self.draws:
            yield (
                f"[ ]: 95 %, paired bootstrap over questions, {self.draws:,} draws, seed {self.seed}"
                + ("; *: a difference whose interval excludes 0" if len(self.models) > 1 else "")
            )
        if len(self.models) > 1:
            main = ", ".join(f"{task.name} {task.main.name}" for task in self.tasks if task.main and not task.part)
            if main:
                yield f"Rel.: mean of performance relative to {self.baseline}, of {main}; above 100 is better"
            for model, rel in self.relatives().items():
                missing = {name for name, one in rel.of_task.items() if not math.isfinite(one.value)}
                # The average takes no part of another task, so that none is missing from it.
                without = [task.name for task in self.tasks if task.name in missing and not task.part]
                if without:
                    yield (
                        f"  of {model} without {', '.join(without)}, where a number is missing, or one that is divided "
                        f"by isn't above 0"
                    )
                if self.draws and rel.undrawn:
                    yield f"  of {model} without an interval: {', '.join(rel.undrawn)} can't be drawn anew"

    def _failures(self) -> Iterator[str]:
        for task in self.tasks:
            for model, one in task.models.items():
                if one.failures:
                    total = one.failures.total()
                    yield f"{task.name}: {total:,} of {task.questions:,} failed by {model}, not in its numbers"
                    for kind, count in one.failures.most_common(_MOST_FAILURES):
                        yield f"  {count:,} {one.examples[kind]}"
                if one.incomplete:
                    yield (
                        f"{task.name}: {one.incomplete:,} questions failed by {model} in some of their ways, not in "
                        "its numbers in any way"
                    )
                if one.left_out:
                    yield f"  {one.left_out:,} more don't count, since another question of their group failed"
                if one.cut:
                    yield f"{task.name}: {one.cut:,} answers by {model} were cut at the most new tokens"

    def json(self) -> Json:
        """All of it as JSON values; shares from 0 to 1."""
        relatives = self.relatives()
        return {
            "models": [{"name": name, "model": checkpoint} for name, checkpoint in self.models.items()],
            "baseline": self.baseline,
            "bootstrap": {"draws": self.draws, "seed": self.seed, "interval": 0.95},
            "tasks": [_task_json(task) for task in self.tasks],
            "told": list(self.told),
            "relative": {
                name: {
                    **rel.mean.json(),
                    "of_task": {task: one.json() for task, one in rel.of_task.items()},
                }
                for name, rel in relatives.items()
            },
        }


def _task_json(task: OfTask) -> Json:
    return {
        "name": task.name,
        "source": task.source,
        "questions": task.questions,
        "units": task.units,
        "main": task.main and task.main.name,
        "metrics": [
            {"name": each.name, "percent": each.percent, "higher_is_better": each.higher_is_better}
            for each in task.metrics
        ],
        "models": {
            name: {
                "answered": one.answered,
                "failed": one.failures.total(),
                "incomplete": one.incomplete,
                "failures": {one.examples[kind]: count for kind, count in one.failures.most_common()},
                "numbers": {metric: each.json() for metric, each in one.numbers.items()},
                "common": one.common,
                "differences": {metric: each.json() for metric, each in one.differences.items()},
                "groups": {
                    group: {"answered": count, "numbers": {metric: _finite(value) for metric, value in numbers.items()}}
                    for group, (count, numbers) in one.by_group.items()
                },
            }
            for name, one in task.models.items()
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def number_text(value: float | None, *, percent: bool, sign: bool = False) -> str:
    """A number of a metric for people: shares times 100 with one digit behind the point, others with three, or one from
    100 on; a dash for none. `sign`: with its sign, as a difference has it."""
    if value is None or not math.isfinite(value):
        return "–"
    digits = 1 if percent or abs(value) >= 100 else 3
    return f"{100 * value if percent else value:{'+' if sign else ''}.{digits}f}"


def estimate_text(one: Estimate, *, percent: bool, sign: bool = False) -> str:
    """A number with its interval; a difference whose interval excludes 0 has a star."""
    text = number_text(one.value, percent=percent, sign=sign)
    if one.low is None:
        return text
    low, high = (number_text(each, percent=percent, sign=sign) for each in (one.low, one.high))
    return f"{text} [{low}, {high}]" + (" *" if sign and one.excludes_zero else "")


def metric_text(metric: Metric) -> str:
    """A metric as a column's head: with the unit of shares, and an arrow where less is better."""
    return metric.name + (" %" if metric.percent else "") + (" ↓" if metric.higher_is_better is False else "")


def _table(summary: EvalSummary) -> Iterator[str]:
    """Models by rows, metrics by columns; as many tables below each other as fit the width."""
    rows = []
    for model in summary.models:
        rows.append((model, False))
        if model != summary.baseline:
            rows.append((model, True))
    names = [f"  - {summary.baseline}" if difference else model for model, difference in rows]
    columns = [_column(task, metric, rows) for task in summary.tasks for metric in _shown(task)]
    if len(summary.models) > 1 and any(task.main for task in summary.tasks):
        columns.append(_relative_column(summary, rows))
    side = max(map(len, names)) + 2
    for some in _fitting(columns, _WIDTH - side):
        for line in range(2 + len(rows)):
            name = ("", "", *names)[line]
            cells = (f"{column[line]:<{max(map(len, column))}}" for column in some)
            yield f"{name:<{side}}{'  '.join(cells)}".rstrip()
        yield ""


def _shown(task: OfTask) -> list[Metric]:
    """The metrics that any model has a number of; where there is none, the main one."""
    known = [
        metric
        for metric in task.metrics
        if any(math.isfinite(one.numbers[metric.name].value) for one in task.models.values())
    ]
    return known or [metric for metric in task.metrics if metric == task.main]


def _column(task: OfTask, metric: Metric, rows: Sequence[tuple[str, bool]]) -> list[str]:
    cells = [task.name, metric_text(metric)]
    for model, difference in rows:
        one = task.models[model].differences if difference else task.models[model].numbers
        cells.append(estimate_text(one[metric.name], percent=metric.percent, sign=difference))
    return cells


def _relative_column(summary: EvalSummary, rows: Sequence[tuple[str, bool]]) -> list[str]:
    found = summary.relatives()
    cells = ["", "Rel. %"]
    for model, difference in rows:
        if difference:
            cells.append("")
        else:
            one = found[model].mean if model in found else Estimate(1.0)
            cells.append(estimate_text(one, percent=True))
    return cells


def _fitting(columns: Sequence[list[str]], width: int) -> Iterator[list[list[str]]]:
    """The columns in order, as many together as fit the width; a task's name stands over its first column there."""
    some: list[list[str]] = []
    taken = 0
    for column in columns:
        size = max(map(len, column)) + 2
        if some and taken + size > width:
            yield _named_once(some)
            some, taken = [], 0
        some.append(column)
        taken += size
    if some:
        yield _named_once(some)


def _named_once(columns: Sequence[list[str]]) -> list[list[str]]:
    named = []
    for place, column in enumerate(columns):
        again = place > 0 and columns[place - 1][0] == column[0]
        named.append(["" if again else column[0], *column[1:]])
    return named
