"""What a task is: how its data is read, how its questions are put, and what answers are worth.

A task is one small file in `tasks/`. It reads the files as the benchmark's authors publish them, and names them. What
answers are worth is computed in two steps: `mark`, of one answer, on the workers; `metrics`, of all marks, in the
driver, once for the table and once for each draw of the bootstrap, where answers have weights other than 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vig_ray.errors import StageError
from vig_ray.evaluation.question import Answer, Columns, Marks, Question

Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Given:
    """What the command says of one task's data. `data`: a file or a folder, a path or URI. `images`: the folder that
    relative image paths start from, by default the data's. `options`: the task's own, such as {"synonyms": FILE}.
    `limit`: how many of its questions are asked, from the first; None for all. A task may read more, and is asked no
    more than these; one that needs others than it asks bounds by it what it reads."""

    data: str
    images: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None

    def choice(self, task: str, name: str, known: Sequence[str]) -> str:
        """The value of a task's option, one of these; the first where it isn't given. Raises StageError."""
        value = self.options.get(name, known[0])
        if value not in known:
            raise StageError(f"--task-options {task}.{name}={value}: expected one of {', '.join(known)}")
        return value

    def whole(self, task: str, name: str, default: int, least: int = 1) -> int:
        """The value of a task's option, a whole number. Raises StageError."""
        value = self.options.get(name, str(default))
        if not value.isdecimal() or int(value) < least:
            raise StageError(f"--task-options {task}.{name}={value}: expected a whole number from {least} on")
        return int(value)


@dataclass(frozen=True)
class Metric:
    """One number that a task reports. `percent`: it is a share, shown times 100. `higher_is_better`: False for CHAIR's,
    None where neither more nor less is better, as of the share of answers that are yes. `main`: what a model's relative
    performance (VisNec's Rel.) takes of the task; one metric of a benchmark is, none of an analysis."""

    name: str
    percent: bool = True
    higher_is_better: bool | None = True
    main: bool = False


class Task(Protocol):
    """`name`: as --tasks has it. `source`: paper and address of what is implemented. `options`: its options, and
    what each is; of those that it names, "synonyms", "judge" and "judge_model" have options of the command's own.
    `max_new_tokens`: of an answer that is written. `metrics_of`: its numbers, in their order.

    A task may have more: `by`, for those with choices, whether log-probs are compared by answer, "sum" (the default),
    by token, "token", by "character", or by the "first" token, as for yes and no. `begin(given)`: called once in each
    process before any `mark`, with what the command says of the task; where a judge or a list is needed, say.
    `check(given)`: called once, before models are asked; where something can be missing, a judge say.
    `at_once`: how many threads may `mark` at a time, 1 by default; for those who wait for a judge. `ways`: how many
    questions in a row are one of the benchmark's, asked in several ways; --limit counts them as one.
    `whole_units`: answers count only where none of their unit's failed, as what is right as a whole needs them all.
    `incomplete(marks)`: how many questions no number takes though there are marks of them, as others of the same are
    missing. `curves`: of the marks of several models, a table of `vig_ray.evaluation.curves`. `told`: of the same,
    lines about its numbers. `files(given)`: by name, files beside the questions' that decide marks, and are not named
    by an option. `right_answers`: False where no answer is right by itself.
    """

    name: str
    source: str
    options: Mapping[str, str]
    max_new_tokens: int
    metrics_of: tuple[Metric, ...]

    def read(self, given: Given) -> Iterator[Question]:
        """The questions, in the files' order. Raises StageError, naming file and line or key, where a file isn't there
        or is of another layout."""

    def mark(self, question: Question, answer: Answer) -> Marks:
        """What an answer is worth: the same names for every answer. Raises StageError where no answer can be marked (a
        judge that is down), which ends the run; whatever else it raises becomes the error of the row."""

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """The numbers of `metrics_of` by name, of answers that count `weights_N` times each; NaN where a number can't
        be had of them. The answers are in the order of their questions; failed ones are left out."""


def mean(values_N: npt.NDArray[np.float64], weights_N: Weights) -> float:
    """Weighted mean of what isn't NaN; NaN of nothing."""
    known = ~np.isnan(values_N)
    total = float(weights_N[known].sum())
    return float((values_N[known] * weights_N[known]).sum() / total) if total else float("nan")


def ratio(parts_N: npt.NDArray[np.float64], wholes_N: npt.NDArray[np.float64], weights_N: Weights) -> float:
    """The weighted sum of parts over that of wholes; NaN where that is 0."""
    total = float(np.nansum(wholes_N * weights_N))
    return float(np.nansum(parts_N * weights_N)) / total if total else float("nan")


def share_of_groups(values_N: npt.NDArray[np.float64], groups_N: npt.NDArray[np.float64], weights_N: Weights) -> float:
    """Of groups of answers, numbered in `groups_N`, the share that is right in all of its answers (value 1).

    A group weighs what its answers weigh on average; an answer without a value or a group, NaN, doesn't count. NaN of
    nothing.
    """
    known = ~(np.isnan(values_N) | np.isnan(groups_N))
    _, group_K = np.unique(groups_N[known], return_inverse=True)
    size_G = np.bincount(group_K)
    right_G = np.bincount(group_K, values_N[known] == 1) == size_G
    return mean(right_G.astype(np.float64), np.bincount(group_K, weights_N[known]) / size_G)
