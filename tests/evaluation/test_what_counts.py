"""Which answers a number is of: no question in one number and out of the next, no part of a group for the whole."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.evaluation.asking import read
from vig_ray.evaluation.outcomes import Marked, compared
from vig_ray.evaluation.question import Answer, Question
from vig_ray.evaluation.summary import EvalSummary
from vig_ray.evaluation.task import Task

COLORS = ("red", "green", "blue", "white")


def colours(folder: Path, **more: Any) -> Path:
    rows = [
        {"question": f"Item {n}: what color?", "answer": color, "image": f"{n}.png"} for n, color in enumerate(COLORS)
    ]
    for number in range(len(rows)):
        (folder / f"{number}.png").write_bytes(bytes([number]) * 9)
    file = folder / "rows.json"
    file.write_text(json.dumps([{**row, **more} for row in rows]), encoding="utf-8")
    return file


def marked(made: Task, questions: list[Question], texts: list[str | None]) -> Marked:
    """What a model answered, None where it failed, as `read_marked` gives it."""
    marks = [
        None if text is None else made.mark(question, Answer(text))
        for question, text in zip(questions, texts, strict=True)
    ]
    names = dict.fromkeys(name for each in marks if each for name in each)
    columns = {name: np.array([np.nan if each is None else each[name] for each in marks]) for name in names}
    keys = pa.array([f"{n:010d}" for n in range(len(questions))])
    failed = sum(each is None for each in marks)
    return Marked(
        keys,
        pa.array([question.unit or key for question, key in zip(questions, keys.to_pylist(), strict=True)]),
        pa.array([question.group for question in questions]),
        np.array([each is not None for each in marks]),
        columns,
        Counter({"Torn": failed} if failed else {}),
        {"Torn": "Torn: a page"},
    )


@pytest.mark.parametrize("name", ["swap:exact", "blind-faith:exact"])
def test_all_ways_are_of_the_same_questions(tmp_path: Path, name: str) -> None:
    """The first question is right and failed in its second way; the others are wrong in each."""
    made, questions = read(name, colours(tmp_path))
    ways: int = made.ways  # type: ignore[attr-defined]
    texts: list[str | None] = ["mauve"] * len(questions)
    texts[0], texts[1] = COLORS[0], None
    one = marked(made, questions, texts)
    task = compared(made, {"a": one}, "a", draws=0, seed=0)
    first, second = [metric.name for metric in made.metrics_of][:2]
    found = task.models["a"].numbers
    assert (found[first].value, found[second].value) == (0, 0)
    assert task.models["a"].incomplete == 1
    text = EvalSummary("out", {"a": "m"}, "a", (task,), 0, 0).text()
    assert f"{name}: 1 of {4 * ways} failed by a, not in its numbers" in text
    assert f"{name}: 1 questions failed by a in some of their ways, not in its numbers in any way" in text
