"""A task asked without a model: its questions, and the numbers of answers that a test gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vig_ray.evaluation.question import Answer, Question
from vig_ray.evaluation.task import Given, Task
from vig_ray.evaluation.tasks import task


def begun(name: str, given: Given) -> Task:
    made = task(name)
    getattr(made, "begin", lambda _: None)(given)
    return made


def read(name: str, data: Path, images: Path | None = None, **options: str) -> tuple[Task, list[Question]]:
    """The task, ready to mark, and its questions."""
    given = Given(str(data), images and str(images), options)
    made = begun(name, given)
    questions = list(made.read(given))
    assert len({question.id for question in questions}) == len(questions)
    for question in questions:
        assert question.prompt.count("<image>") == len(question.images)
    return made, questions


def answered(made: Task, questions: Sequence[Question], texts: Sequence[str], weights: Any = None) -> dict[str, float]:
    """The numbers of the task, of these answers; in the order and with the names that the task declares."""
    marks = [made.mark(question, Answer(text)) for question, text in zip(questions, texts, strict=True)]
    columns = {name: np.array([each[name] for each in marks], dtype=np.float64) for name in marks[0]}
    weights_N = np.ones(len(marks)) if weights is None else np.asarray(weights, dtype=np.float64)
    found = made.metrics(columns, weights_N)
    assert set(found) == {metric.name for metric in made.metrics_of}
    assert sum(metric.main for metric in made.metrics_of) == 1
    return found
