"""The last stage: answers to rows of OUT/evaluation/MODEL, each marked by its task."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from vig_ray.errors import StageError
from vig_ray.evaluation.asked import Asked
from vig_ray.evaluation.likelihood import Choice, compared_by, likeliest
from vig_ray.evaluation.question import Answer
from vig_ray.evaluation.questions import from_row
from vig_ray.evaluation.schema import ANSWERS
from vig_ray.evaluation.task import Task
from vig_ray.storage import one_line


class Marker:
    """A Ray Data callable: rows of `ANSWERED` to rows of `ANSWERS`.

    `tasks`: those that the questions are of.
    """

    def __init__(self, *, tasks: Sequence[Asked]) -> None:
        self._tasks = {asked.name: asked.begun() for asked in tasks}

    def __call__(self, answered: pa.Table) -> pa.Table:
        """Mark a block; several answers at a time where a task says so."""
        rows = answered.to_pylist()
        by_task: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            by_task.setdefault(row["source"], []).append(number)
        marked: list[dict[str, Any]] = [{}] * len(rows)
        for name, numbers in by_task.items():
            task = self._tasks[name]
            done = _each(lambda row, task=task: mark_row(task, row), [rows[n] for n in numbers], task)  # type: ignore[misc]
            for number, row in zip(numbers, done, strict=True):
                marked[number] = row
        return pa.Table.from_pylist(marked, schema=ANSWERS)


def _each(
    mark: Callable[[Mapping[str, Any]], dict[str, Any]], rows: Sequence[Mapping[str, Any]], task: Task
) -> list[dict[str, Any]]:
    at_once = int(getattr(task, "at_once", 1))
    if at_once == 1:
        return [mark(row) for row in rows]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(mark, rows))


def mark_row(task: Task, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of an answered question, as a task marks it. Raises StageError where no answer can be marked."""
    question = from_row(row)
    out = {name: value for name, value in row.items() if name in ANSWERS.names} | {
        "task": row["source"],
        "group": question.group,
        "unit": question.unit,
        "prompt": question.prompt,
        "expected": json.dumps(question.expected, ensure_ascii=False),
    }
    if row["error"] is not None:
        return out
    answer = answer_of(task, row)
    try:
        marks = {name: float(value) for name, value in task.mark(question, answer).items()}
        score = marks["score"]
    except StageError:
        raise
    except Exception as error:  # one answer that a task doesn't expect must not end the job
        return out | {"answer": answer.text, "error": f"Mark: {type(error).__name__}: {one_line(error)}"[:500]}
    numbers = [{"name": name, "value": value} for name, value in marks.items()]
    return out | {"answer": answer.text, "score": score, "marks": numbers}


def answer_of(task: Task, row: Mapping[str, Any]) -> Answer:
    """The answer in a row of `ANSWERED` or `ANSWERS`."""
    choices = [Choice(each["text"], each["logprob"], each["first"], each["tokens"]) for each in row["choices"] or ()]
    text = choices[likeliest(choices, compared_by(task))].text if choices else row["answer"] or ""
    return Answer(
        text,
        tuple(choice.logprob for choice in choices),
        tuple(choice.tokens for choice in choices),
        bool(row["finished"]),
        tuple(choice.first for choice in choices),
        np.asarray(row["token_ids"] or (), dtype=np.int32),
        {each["name"]: np.asarray(each["logprobs"], dtype=np.float32) for each in row["passes"] or ()},
        row["tokens_before"] or 0,
    )
