"""Tasks around another: its questions asked in several ways, as `blind-faith:vqav2` and `swap:gqa` do.

Each question of the inner task comes once for each way, one after the other; they are one unit, so that the bootstrap
draws them together, and `--limit` counts them as one. An answer is marked as the inner task marks it, and the inner
task's main number is computed of each way's answers. Only questions with marks in every way count, so that all ways are
of the same questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vig_ray.errors import StageError
from vig_ray.evaluation.judged import JudgedMarks
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Task, Weights
from vig_ray.evaluation.told import warn_once

_NUMBER = "wrapped number"  # a mark: the question's place among the inner task's
_KEY = "wrapped"  # in a question's `more`: the way that it is asked, and what of it isn't the inner task's


class Wrapped:
    """A task around `inner`. A subclass has `read`, `metrics` and what is its own of the other names; `ways`: how many
    questions it makes of one."""

    prefix: str
    own_options: Mapping[str, str]
    ways: int

    def __init__(self, inner: Task) -> None:
        self.inner = inner
        self.name = f"{self.prefix}:{inner.name}"
        self.options: Mapping[str, str] = {**inner.options, **self.own_options}
        self.max_new_tokens = inner.max_new_tokens
        self.at_once = int(getattr(inner, "at_once", 1))
        self.by: str = getattr(inner, "by", "sum")

    @property
    def main(self) -> Metric:
        """The inner task's main number."""
        return next((metric for metric in self.inner.metrics_of if metric.main), self.inner.metrics_of[0])

    def begin(self, given: Given) -> None:
        """See `Task`."""
        getattr(self.inner, "begin", lambda _: None)(self.inner_given(given))
        self.max_new_tokens = self.inner.max_new_tokens  # an option of the inner task may have said it
        self.by = getattr(self.inner, "by", "sum")

    def files(self, given: Given) -> Mapping[str, str]:
        """See `Task`."""
        found: Mapping[str, str] = getattr(self.inner, "files", lambda _: {})(self.inner_given(given))
        return found

    def check(self, given: Given) -> None:
        """See `Task`."""
        getattr(self.inner, "check", lambda _: None)(self.inner_given(given))

    def inner_given(self, given: Given) -> Given:
        """What the command says of the inner task."""
        own = {name: value for name, value in given.options.items() if name not in self.own_options}
        return replace(given, options=own)

    def mark(self, question: Question, answer: Answer) -> Marks:
        """The inner task's marks, the number of the way that the question was asked, and the question's own."""
        marks = self.inner.mark(inner_question(question), answer)
        asked = asked_of(question)
        return and_marks(marks, {"way": float(asked["way"]), _NUMBER: float(asked["number"])})

    def in_all_ways(self, marks: Columns, weights_N: Weights) -> tuple[Columns, Weights]:
        """The marks and weights of answers to questions that have marks in every way."""
        whole_N = self._whole(marks)
        if whole_N.all():
            return marks, weights_N
        return {name: values[whole_N] for name, values in marks.items()}, weights_N[whole_N]

    def incomplete(self, marks: Columns) -> int:
        """See `Task`: how many questions have marks in some ways alone."""
        return len(np.unique(marks[_NUMBER][~self._whole(marks)])) if _NUMBER in marks else 0

    def _whole(self, marks: Columns) -> npt.NDArray[np.bool_]:
        _, question_N = np.unique(marks[_NUMBER], return_inverse=True)
        whole_N: npt.NDArray[np.bool_] = np.bincount(question_N)[question_N] == self.ways
        return whole_N

    def main_of(self, way: int, marks: Columns, weights_N: Weights) -> float:
        """The inner task's main number, of the answers to questions that were asked in one way; NaN of none."""
        rows = np.flatnonzero(marks["way"] == way)
        if not len(rows):
            return float("nan")
        return self.inner.metrics({name: values[rows] for name, values in marks.items()}, weights_N[rows])[
            self.main.name
        ]


def and_marks(marks: Marks, more: Marks) -> Marks:
    """Marks and others; what a judge was asked and said stays with them."""
    every = {**marks, **more}
    return JudgedMarks(every, marks.asked, marks.replied) if isinstance(marks, JudgedMarks) else every


def asked_way(
    question: Question, number: int, way: int, name: str, *, also: Mapping[str, Any] | None = None
) -> Question:
    """A question as it is asked in one way, called `name`; the caller changes what else is to be changed.

    `number`: the same for all ways of a question, and for no other. `also`: what the wrapper's `mark` needs,
    which `asked_of` gives back.
    """
    asked = {"way": way, "number": number, **(also or {})}
    return replace(
        question,
        id=f"{question.id}/{name}",
        unit=question.id if question.unit is None else question.unit,
        more={**question.more, _KEY: asked},
    )


def asked_of(question: Question) -> Mapping[str, Any]:
    """How a wrapped question was asked: its `way`, and what else was said of it."""
    asked: Mapping[str, Any] = question.more[_KEY]
    return asked


def inner_question(question: Question) -> Question:
    """A wrapped question with what the inner task said of it."""
    more = {name: value for name, value in question.more.items() if name != _KEY}
    return replace(question, id=question.id.rpartition("/")[0], more=more)


class LeftOut(NamedTuple):
    """A question that isn't asked, and why."""

    why: str


def told_of(name: str, questions: Iterator[Question | LeftOut]) -> Iterator[Question]:
    """Questions without those that are left out, which are counted and told by their reason. Raises StageError where
    there is nothing else."""
    left_out: Counter[str] = Counter()
    found = 0
    for question in questions:
        if isinstance(question, LeftOut):
            left_out[question.why] += 1
        else:
            found += 1
            yield question
    if left_out and not found:
        if len(left_out) == 1:
            raise StageError(f"--tasks {name}: {next(iter(left_out))}, in any of {left_out.total():,} questions")
        whys = ", ".join(f"{why} {count:,}" for why, count in left_out.items())
        raise StageError(f"--tasks {name}: {whys}, of {left_out.total():,} questions")
    for why, count in left_out.items():
        warn_once(f"{name}: {count:,} questions left out: {why}")
