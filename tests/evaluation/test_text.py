"""Whether an answer says an expected text: whole words, and whole numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation.asking import answered, read
from vig_ray.errors import StageError
from vig_ray.evaluation.text import begins, same, says


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("5", "5", True),
        ("There are 5.", "5", True),
        ("5, I think", "5", True),
        ("2, 5, 7", "5", True),
        ("(5)", "5", True),
        ("$5", "5", True),
        ("+5", "5", True),
        ("it is 5%", "5", True),
        ("3-5 dogs", "5", True),  # a range: the sign of nothing
        ("3-5 dogs", "3", True),
        ("x,5", "5", True),
        ("so...5", "5", True),
        ("...5", "5", True),
        ("1.5 m", "5", False),
        ("1.5 m", "1", False),
        ("5.0", "5", False),
        ("-5", "5", False),
        ("It is -5 degrees", "5", False),
        ("It is −5 degrees", "5", False),  # the sign of minus itself
        ("(-5)", "5", False),
        ("5,000", "5", False),
        ("5,000", "000", False),
        (".5", "5", False),
        ("it is .5 m", "5", False),
        ("-.5", ".5", False),
        ("0.5", ".5", False),
        ("it is .5 m", ".5", True),
        ("it is -5 degrees", "-5", True),
        ("3-5", "-5", False),
        ("5,000 people", "5,000", True),
        ("15,000 people", "5,000", False),
        ("5,000.5", "5,000", False),
        ("1.5 dogs", "5 dogs", False),
        ("room 5.2", "room 5", False),
        ("room 5. It is", "room 5", True),
        ("15", "5", False),
        ("5a", "5", False),
        ("a red cat", "red", True),
        ("a well-red cat", "red", True),
        ("redder", "red", False),
        ("anything", "?", False),
    ],
)
def test_a_number_is_said_as_a_whole(answer: str, expected: str, right: bool) -> None:
    assert says(answer, expected) is right


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("B. a cat", "B", True),
        ("Bob", "B", False),
        ("5, as it says", "5", True),
        ("5.", "5", True),
        ("5.2", "5", False),
        ("5,000", "5", False),
        (".5", "5", False),
        ("-5", "5", False),
        ("anything", "?", False),
        ("", "", False),
    ],
)
def test_an_answer_begins_with_a_number_as_a_whole(answer: str, expected: str, right: bool) -> None:
    assert begins(answer, expected) is right


def test_a_point_before_a_digit_is_a_part_of_the_number() -> None:
    assert not same(".5", "5")
    assert same(".5.", " .5")
    assert same('"5."', "5")


def test_containment_of_exact(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('[{"question": "How long?", "answer": ["5", "five"]}]', encoding="utf-8")
    made, questions = read("exact", file)
    assert answered(made, questions, ["1.5 m"]) == {"exact": 0, "contains": 0}
    assert answered(made, questions, ["about 5 m"]) == {"exact": 0, "contains": 1}


@pytest.mark.parametrize("answer", ["", "?!", ["red", " . "]])
def test_an_expected_answer_that_says_nothing_is_refused(tmp_path: Path, answer: object) -> None:
    """Any other punctuation would be the same."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"question": "a", "answer": "b"}, {"question": "c", "answer": answer}]))
    with pytest.raises(StageError, match=r"rows.json, entry 2: 'answer' is '.*', of which nothing is left without"):
        read("exact", file)
