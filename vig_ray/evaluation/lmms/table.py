"""lmms-eval's results in the table: with the paired bootstrap where it says what each answer is worth and the number is
the mean of that, else with its own standard errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from vig_ray.errors import StageError
from vig_ray.evaluation.asked import LMMS
from vig_ray.evaluation.lmms.environment import VERSION
from vig_ray.evaluation.lmms.results import LmmsResult, Number
from vig_ray.evaluation.lmms.run import Failed
from vig_ray.evaluation.outcomes import Drawn, Marked, OfModel, OfTask, compared
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.statistics import Estimate
from vig_ray.evaluation.task import Given, Metric, Weights, mean

Answers = Mapping[str, Sequence[LmmsResult] | Failed]
"""What one model made of lmms-eval's tasks, by task."""
_TO_EACH_SIDE = 1.959963984540054  # standard errors: 95 %
_SOURCE = f"lmms-eval {VERSION}, https://github.com/EvolvingLMMs-Lab/lmms-eval"


@dataclass(frozen=True)
class InTable:
    """What there is to show. `told`: lines for a person; `failed`: tasks that no model has a number of."""

    tasks: tuple[OfTask, ...]
    told: tuple[str, ...]
    failed: int


def in_table(found: Mapping[str, Answers], baseline: str, *, draws: int, seed: int) -> InTable:
    """The numbers of each model on each of lmms-eval's tasks, and their differences to the baseline.

    `found`: by model. A group's own number is a task beside its tasks. Raises StageError where models answered other
    questions.
    """
    tasks: dict[str, OfTask] = {}
    told: list[str] = []
    failed = 0
    asked = list(next(iter(found.values())))
    for task in asked:
        of_models = {model: answers[task] for model, answers in found.items()}
        names = dict.fromkeys(
            result.name for each in of_models.values() if not isinstance(each, Failed) for result in each
        )
        if not names:
            failed += 1
            told += [f"{LMMS}{task} failed: {each.why}" for each in of_models.values() if isinstance(each, Failed)][:1]
        for name in names:
            if name in tasks or (name != task and name in asked):
                continue  # once is enough, and by itself if it was asked for by itself
            one = _OfName(name, {model: _named(each, name) for model, each in of_models.items()})
            part = name != task and task in names
            tasks[name] = replace(one.of_task(baseline, draws=draws, seed=seed), part=part)
            told += one.told(draws=draws)
    return InTable(tuple(tasks.values()), tuple(told), failed)


def _named(each: Sequence[LmmsResult] | Failed, name: str) -> LmmsResult | str:
    """A model's result of that name, or why there is none."""
    if isinstance(each, Failed):
        return each.why
    return next((result for result in each if result.name == name), "lmms-eval gave no number of it")


class _OfName:
    """One task, or one group's own number, of all models; `found`: by model, why not where there is none."""

    def __init__(self, name: str, found: Mapping[str, LmmsResult | str]) -> None:
        self.name, self._found = f"{LMMS}{name}", found
        self._results = {model: one for model, one in found.items() if isinstance(one, LmmsResult)}
        numbers = {each.name: each for result in self._results.values() for each in result.numbers}
        self._metrics = tuple(
            Metric(each.name, percent=False, higher_is_better=each.higher_is_better, main=place == 0)
            for place, each in enumerate(numbers.values())
        )
        self._scored = tuple(
            metric for metric in self._metrics if all(metric.name in each.scores for each in self._results.values())
        )
        self._first = next(iter(self._results.values()))

    def of_task(self, baseline: str, *, draws: int, seed: int) -> OfTask:
        """Its numbers. Raises StageError where models answered other questions."""
        if self._scored:
            marked = {model: self._marked(one) for model, one in self._found.items()}
            task = compared(_Means(self.name, self._scored), marked, baseline, draws=draws, seed=seed)
        else:
            asked = self._first.questions
            models = {model: self._without_scores(model, baseline) for model in self._found}
            task = OfTask(self.name, _SOURCE, (), asked, asked, models)
        models = {model: self._completed(model, one, baseline, draws) for model, one in task.models.items()}
        return replace(task, metrics=self._metrics, models=models)

    def told(self, *, draws: int) -> list[str]:
        """What a reader of its numbers should know."""
        lines = [
            f"{self.name}: {model} failed at {one.not_answered:,} of {one.questions:,} questions ({one.why}), which "
            "lmms-eval counts as wrong"
            for model, one in self._results.items()
            if one.not_answered
        ]
        known = {each.name for one in self._results.values() for each in one.numbers if each.stderr is not None}
        rest = [metric.name for metric in self._metrics if metric not in self._scored and metric.name in known]
        if rest and draws:
            lines.append(f"{self.name}: intervals of {', '.join(rest)} are lmms-eval's standard errors, not paired")
        return lines

    def _marked(self, one: LmmsResult | str) -> Marked:
        keys = pa.array(self._first.keys if isinstance(one, str) else one.keys, pa.string())
        failures: Counter[str] = Counter({"lmms-eval": len(keys)} if isinstance(one, str) else {})
        columns = {
            metric.name: np.full(len(keys), np.nan) if isinstance(one, str) else one.scores[metric.name]
            for metric in self._scored
        }
        answered = np.full(len(keys), not isinstance(one, str))
        groups = pa.nulls(len(keys), pa.string())
        return Marked(keys, keys, groups, answered, columns, failures, self._examples(one))

    def _without_scores(self, model: str, baseline: str) -> OfModel:
        one = self._found[model]
        answered = 0 if isinstance(one, str) else one.questions
        both = answered if isinstance(self._found[baseline], LmmsResult) else 0
        failures = Counter({"lmms-eval": max(1, self._first.questions)} if isinstance(one, str) else {})
        none = Drawn({}, {})
        return OfModel(answered, failures, self._examples(one), {}, {}, both, {}, none, none)

    @staticmethod
    def _examples(one: LmmsResult | str) -> dict[str, str]:
        return {"lmms-eval": one} if isinstance(one, str) else {}

    def _completed(self, model: str, one: OfModel, baseline: str, draws: int) -> OfModel:
        """With the numbers that aren't means of what is known of each answer."""
        numbers, differences = dict(one.numbers), dict(one.differences)
        ours_values, theirs_values = dict(one.on_common.values), dict(one.baseline_on_common.values)
        for name in (metric.name for metric in self._metrics if metric not in self._scored):
            ours, theirs = self._number(model, name), self._number(baseline, name)
            numbers[name] = _estimate(ours.value, ours.stderr, draws)
            ours_values[name], theirs_values[name] = ours.value, theirs.value
            if model != baseline:
                known = ours.stderr is not None and theirs.stderr is not None
                both = math.hypot(ours.stderr or 0, theirs.stderr or 0) if known else None
                differences[name] = _estimate(ours.value - theirs.value, both, draws)
        return replace(
            one,
            numbers=numbers,
            differences=differences,
            on_common=Drawn(ours_values, one.on_common.draws),
            baseline_on_common=Drawn(theirs_values, one.baseline_on_common.draws),
        )

    def _number(self, model: str, name: str) -> Number:
        one = self._found[model]
        known = () if isinstance(one, str) else one.numbers
        return next((each for each in known if each.name == name), Number(name, math.nan, None, True))


def _estimate(value: float, stderr: float | None, draws: int) -> Estimate:
    """With an interval by its standard error; without one where none are asked for, or it has none."""
    if stderr is None or not draws or not math.isfinite(value):
        return Estimate(value)
    return Estimate(value, value - _TO_EACH_SIDE * stderr, value + _TO_EACH_SIDE * stderr)


class _Means:
    """A `Task` whose numbers are the means of its marks, and which reads and marks nothing."""

    source = _SOURCE
    options: Mapping[str, str] = {}
    max_new_tokens = 0
    by = "sum"

    def __init__(self, name: str, metrics: tuple[Metric, ...]) -> None:
        self.name, self.metrics_of = name, metrics

    def read(self, given: Given) -> Iterator[Question]:
        """lmms-eval reads it."""
        raise StageError(f"{self.name}: {given.data} is for lmms-eval to read")

    def mark(self, question: Question, answer: Answer) -> Marks:
        """lmms-eval marks it."""
        raise StageError(f"{self.name}: {answer.text!r} to {question.id} is for lmms-eval to mark")

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """Weighted means of the marks."""
        return {metric.name: mean(marks[metric.name], weights_N) for metric in self.metrics_of}
