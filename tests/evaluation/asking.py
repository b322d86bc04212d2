"""A task asked without a model: its questions, and the numbers of answers that a test gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vig_ray.evaluation.question import Answer, Question
from vig_ray.evaluation.questions import from_row, to_sample
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
    return made, [_through_samples(question, name) for question in questions]


def _through_samples(question: Question, task: str) -> Question:
    """The question as it comes out of samples/ again."""
    assert question.prompt.count("<image>") == len(question.images)
    sample, kept = to_sample(question, task)
    found = from_row(
        {
            "id": sample.id,
            "images": [image._asdict() for image in sample.images],
            "conversation": [turn._asdict() for turn in sample.conversation],
            "kept": [{"name": name, "value": value} for name, value in kept.items()],
        }
    )
    assert found == question
    return found


def answered(made: Task, questions: Sequence[Question], texts: Sequence[str], weights: Any = None) -> dict[str, float]:
    """The numbers of the task, of these answers; in the order and with the names that the task declares."""
    marks = [made.mark(question, Answer(text)) for question, text in zip(questions, texts, strict=True)]
    columns = {name: np.array([each[name] for each in marks], dtype=np.float64) for name in marks[0]}
    weights_N = np.ones(len(marks)) if weights is None else np.asarray(weights, dtype=np.float64)
    found = made.metrics(columns, weights_N)
    assert set(found) == {metric.name for metric in made.metrics_of}
    assert sum(metric.main for metric in made.metrics_of) == 1
    return found
