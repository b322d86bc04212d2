"""Which answers a number is of: no question in one number and out of the next, no part of a group for the whole."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

from tests.evaluation import published_a, published_b
from tests.evaluation.asking import begun, read
from vig_ray.errors import StageError
from vig_ray.evaluation.asked import asked_for, models_of
from vig_ray.evaluation.config import EvalConfig
from vig_ray.evaluation.outcomes import Drawn, Marked, compared
from vig_ray.evaluation.question import Answer, Question
from vig_ray.evaluation.questions import questions_of, survey
from vig_ray.evaluation.statistics import relative
from vig_ray.evaluation.summary import EvalSummary, metric_text, relative_performance
from vig_ray.evaluation.task import Given, Metric, Task, mean
from vig_ray.evaluation.tasks import task as task_of
from vig_ray.evaluation.tasks.blind_faith import BlindFaith
from vig_ray.evaluation.tasks.swap import Swap

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


class Made:
    """A task of one number, that is its marks' mean."""

    name = "made"
    source = "this test"
    metrics_of = (Metric("score", main=True),)

    def metrics(self, marks: Any, weights_N: Any) -> dict[str, float]:
        return {"score": mean(marks["score"], weights_N)}


def test_an_average_without_all_draws_has_no_interval() -> None:
    """An lmms: task may have a number and no score for each answer: the draws of the others are of another average."""
    one = Marked(
        pa.array(["a", "b"]), pa.array(["a", "b"]), pa.array([None, None], pa.string()), np.ones(2, dtype=bool),
        {"score": np.ones(2)}, Counter(), {},
    )  # fmt: skip
    task = compared(Made(), {"a": one, "b": one}, "a", draws=20, seed=0)  # type: ignore[arg-type]
    undrawn = replace(task, name="lmms:x", models={
        name: replace(each, on_common=Drawn({"score": 2.0 if name == "b" else 1.0}, {}),
                      baseline_on_common=Drawn({"score": 1.0}, {}))
        for name, each in task.models.items()
    })  # fmt: skip
    assert relative_performance([task], "b").mean == (1.0, 1.0, 1.0)
    assert relative_performance([task, undrawn], "b").mean == (1.5, None, None)
    text = EvalSummary("out", {"a": "m", "b": "n"}, "a", (task, undrawn), 20, 0).text()
    assert "of b without an interval: lmms:x can't be drawn anew" in text


@pytest.mark.parametrize(
    ("higher", "value", "baseline", "is_number"),
    [(True, 0.0, 0.5, True), (True, 0.5, 0.0, False), (False, 0.0, 0.5, False), (False, 0.5, 0.0, False)],
)
def test_which_tasks_relative_performance_leaves_out(
    higher: bool, value: float, baseline: float, is_number: bool
) -> None:
    found = relative(Metric("x", higher_is_better=higher), value, baseline)
    assert np.isfinite(found) == is_number


def test_scienceqa_without_its_image_has_a_number(tmp_path: Path) -> None:
    published_b.scienceqa(tmp_path, 12)
    made, questions = read("scienceqa", tmp_path)
    with_image = [question for question in questions if question.images]
    assert 0 < len(with_image) < len(questions)
    for question in questions:
        without = dataclasses.replace(question, images=())  # as swap: asks it
        assert np.isfinite(made.mark(without, Answer("A"))["image"]) == bool(question.images)


@pytest.mark.parametrize("name", ["swap:chair", "attention:chair", "chair"])
def test_chairs_length_and_objects_reach_the_tasks_around_it(tmp_path: Path, name: str) -> None:
    rows = [{"question_id": str(n), "image": published_a.struct(n), "gt_object": ["dog"]} for n in range(3)]
    published_a.as_parquet(tmp_path / "chair.parquet", rows)
    given = Given(str(tmp_path / "chair.parquet"), None, {"max_new_tokens": "64"})
    made = begun(name, given)
    assert made.max_new_tokens == 64
    assert len(list(made.read(given))) >= 3


@pytest.mark.parametrize("name", ["questions", "summary", "lmms", "attention"])
def test_no_model_has_the_name_of_what_lies_beside_it(name: str) -> None:
    config = EvalConfig(model=(f"{name}=org/model",), tasks="exact", data="x", out="o")
    with pytest.raises(StageError, match=f"no model can be called {name}; name it, as in --model mine=org/model"):
        models_of(config)


def mme(folder: Path) -> Path:
    """Two images of a subtask, each asked twice: yes is right, then no."""
    (folder / "color").mkdir()
    for number in range(2):
        (folder / "color" / f"{number}.png").write_bytes(published_a.picture(number))
        asked = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
        (folder / "color" / f"{number}.txt").write_text(asked)
    return folder


def test_an_image_of_which_an_answer_failed_is_not_right_as_a_whole(tmp_path: Path) -> None:
    """MME, by hand: always yes has each image half right, 50 + 0; a failed no leaves the other image alone."""
    made, questions = read("mme", mme(tmp_path))
    whole = compared(made, {"a": marked(made, questions, ["yes"] * 4)}, "a", draws=0, seed=0).models["a"]
    part = compared(made, {"a": marked(made, questions, ["yes", "yes", "yes", None])}, "a", draws=0, seed=0).models["a"]
    assert whole.numbers["color"].value == part.numbers["color"].value == 50
    assert (part.answered, part.left_out) == (2, 1)


def test_a_limit_ends_where_a_unit_ends(tmp_path: Path) -> None:
    config = EvalConfig(model=("a=org/model",), tasks="mme", data=str(mme(tmp_path)), out="o", limit=1)
    (asked,) = asked_for(config)
    assert [question.unit for question in questions_of(asked)] == ["color/0.png", "color/0.png"]


def test_a_question_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = colours(tmp_path, id="same", answer="red")
    (asked,) = asked_for(EvalConfig(model=("a=org/model",), tasks="exact", data=str(file), out="o"))
    with pytest.raises(StageError, match=r"rows.json: exact has question 'same' twice; where several files"):
        survey(str(tmp_path), asked)


def test_a_main_number_that_no_model_has_is_not_in_the_table(tmp_path: Path) -> None:
    published_b.mmbench(tmp_path, 4, copies=False)
    made, questions = read("mmbench", tmp_path)
    one = marked(made, questions, [question.expected for question in questions])
    task = compared(made, {"a": one, "b": one}, "a", draws=0, seed=0)
    text = EvalSummary("out", {"a": "m", "b": "n"}, "a", (task,), 0, 0).text()
    assert "circular" not in text.splitlines()[1]
    assert "vanilla" in text.splitlines()[1]
    assert "of b without mmbench, where a number is missing" in text


def test_parts_of_a_task_are_not_missing_from_the_average() -> None:
    """The average takes pope's number, which is there, and not that of its random part, which isn't."""
    one = Marked(
        pa.array(["a", "b"]), pa.array(["a", "b"]), pa.array([None, None], pa.string()), np.ones(2, dtype=bool),
        {"score": np.ones(2)}, Counter(), {},
    )  # fmt: skip
    whole = replace(compared(Made(), {"a": one, "b": one}, "a", draws=0, seed=0), name="lmms:pope")  # type: ignore[arg-type]
    nothing = Drawn({"score": float("nan")}, {})
    without = {name: replace(each, on_common=nothing) for name, each in whole.models.items()}
    part = replace(whole, name="lmms:pope_random", part=True, models=without)
    text = EvalSummary("out", {"a": "m", "b": "n"}, "a", (whole, part), 0, 0).text()
    assert "without" not in text
    text = EvalSummary("out", {"a": "m", "b": "n"}, "a", (replace(whole, models=without), part), 0, 0).text()
    assert "of b without lmms:pope, where a number is missing" in text


@pytest.mark.parametrize("name", ["pope", "hallusionbench"])
def test_the_share_of_yes_is_neither_better_high_nor_low(name: str) -> None:
    made = task_of(name)
    shares = [metric for metric in made.metrics_of if metric.name.split()[-1] == "yes"]
    assert len(shares) == (4 if name == "pope" else 1)
    for metric in shares:
        assert metric.higher_is_better is None
        assert "↓" not in metric_text(metric)
        assert np.isnan(relative(metric, 0.5, 0.5))


def test_a_task_without_a_better_has_none_around_it() -> None:
    class Yes(Made):
        metrics_of = (Metric("yes", higher_is_better=None),)
        options: ClassVar[dict[str, str]] = {}
        max_new_tokens = 1

    swap: Any = Swap(Yes())  # type: ignore[arg-type]
    better = {metric.name: metric.higher_is_better for metric in swap.metrics_of}
    assert better["own"] is None
    faith: Any = BlindFaith(Yes())  # type: ignore[arg-type]
    assert [metric.higher_is_better for metric in faith.metrics_of] == [None, None, None, False]
