"""What a review of `vig eval` found, each held by a small case worked by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.evaluation import published_a as published
from tests.evaluation.asking import answered, read
from tests.evaluation.test_chair import annotations
from tests.evaluation.test_yes_no_and_letters import AMBER, QUERIES
from vig_ray.errors import StageError
from vig_ray.evaluation.asked import Asked
from vig_ray.evaluation.outcomes import Marked
from vig_ray.evaluation.task import Given
from vig_ray.evaluation.tasks import task


def marked(**columns: list[float]) -> Marked:
    """Marks of as many questions, all answered."""
    arrays = {name.replace("_", " "): np.array(values) for name, values in columns.items()}
    keys = pa.array([f"q{number}" for number in range(len(next(iter(arrays.values()))))])
    answered = np.ones(len(keys), dtype=bool)
    return Marked(keys, keys, pa.nulls(len(keys), pa.string()), answered, arrays, Counter(), {})


@pytest.mark.parametrize(("name", "tokens"), [("held-out", "tokens"), ("swap:held-out", "swap_tokens")])
def test_losses_by_token_do_not_count_and_other_tokens_are_told(name: str, tokens: str) -> None:
    made: Any = task(name)
    assert not any(metric.main for metric in made.metrics_of)
    base, same = marked(**{tokens: [3.0, 4.0, np.nan]}), marked(**{tokens: [3.0, 4.0, 5.0]})
    other = marked(**{tokens: [3.0, 6.0, 5.0]})
    assert not list(made.told({"base": base, "same": same}, "base"))
    (line,) = made.told({"base": base, "other": other}, "base")
    assert line.startswith(f"{name}: 1 right answers are of other numbers of tokens for other than for base")


def test_amber_of_descriptions_that_name_nothing_is_no_number(tmp_path: Path) -> None:
    made, questions = read("amber", published.amber(tmp_path / "data", AMBER, QUERIES))
    found = answered(made, questions, ["Nothing.", "Nothing.", "No.", "No", "No", "Yes", "Yes"])
    assert found["f1"] > 0
    assert np.isnan([found["CHAIR"], found["AMBER"]]).all()


@pytest.mark.parametrize("name", ["amber", "swap:amber"])
def test_the_files_of_amber_that_decide_marks_are_in_its_identity(tmp_path: Path, name: str) -> None:
    folder = published.amber(tmp_path / "data", AMBER, QUERIES)
    asked = Asked(name, Given(str(folder)))
    before = asked.identity()
    (words,) = folder.rglob("safe_words.txt")
    words.write_text("another\n")
    assert asked.identity() != before


def test_chair_has_no_answers_that_are_right_by_themselves(tmp_path: Path) -> None:
    annotations(tmp_path)
    with pytest.raises(StageError, match="chair has no answers that are right by themselves"):
        read("blind-faith:chair", tmp_path, synonyms=str(tmp_path / "synonyms.txt"), num_images="all")
