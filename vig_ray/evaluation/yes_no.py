"""Questions whose answer is yes or no: how they are put, and counts of right and wrong answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vig_ray.evaluation.parsing import YesNo
from vig_ray.evaluation.question import Columns, Marks
from vig_ray.evaluation.task import Given, Weights, mean

SHORT = "\nAnswer the question using a single word or phrase."
"""What LLaVA-1.5's evaluation asks after a question, and lmms-eval after it."""
CHOICES = ("Yes", "No")
ANSWERED = "written (default): the model writes its answer; likelihood: Yes and No compared by their first tokens"


def choices_of(given: Given, task: str) -> tuple[str, ...]:
    """The choices of a task's yes/no questions by its option `answered`: none where the model writes."""
    return CHOICES if given.choice(task, "answered", ("written", "likelihood")) == "likelihood" else ()


def suffixed(text: str, suffix: str) -> str:
    """A question with what is asked after it, once: files made for LLaVA have that already."""
    return text if text.endswith(suffix.strip()) else text + suffix


def marks_of(said: YesNo | None, expected: YesNo) -> Marks:
    """What an answer that was read as yes, no or neither is worth."""
    return {
        "score": float(said == expected),
        "said_yes": float(said == "yes"),
        "said_no": float(said == "no"),
        "is_yes": float(expected == "yes"),
    }


class Counts(NamedTuple):
    """Shares of right answers, of the answers that were found, and of those that were to be found; from 0 to 1."""

    accuracy: float
    precision: float
    recall: float
    f1: float


def counts_of(marks: Columns, weights_N: Weights, positive: YesNo, *, unread_is_missed: bool) -> Counts:
    """Accuracy, and precision, recall and F1 of one of the two answers; NaN where there are no questions.

    Precision is 0 where the answer was never given, and so is F1. An answer that is neither yes nor no is wrong;
    `unread_is_missed`: whether recall counts it as well (AMBER's does, lmms-eval's of POPE doesn't).
    """
    said, missed = ("said_yes", "said_no") if positive == "yes" else ("said_no", "said_yes")
    wanted_N = marks["is_yes"] == (positive == "yes")
    found = _total(marks[said] * wanted_N, weights_N)
    given = _total(marks[said], weights_N)
    if unread_is_missed:
        there = _total(wanted_N * ~np.isnan(marks["score"]), weights_N)
    else:
        there = found + _total(marks[missed] * wanted_N, weights_N)
    accuracy = mean(marks["score"], weights_N)
    if np.isnan(accuracy):
        return Counts(accuracy, accuracy, accuracy, accuracy)
    precision, recall = found / given if given else 0.0, found / there if there else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return Counts(accuracy, precision, recall, f1)


def _total(values_N: Weights, weights_N: Weights) -> float:
    return float(np.nansum(values_N * weights_N))
