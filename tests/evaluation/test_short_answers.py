"""VQA accuracy, ANLS, relaxed accuracy and exact match, worked by hand from the papers' definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vig_ray.evaluation.tasks.chartqa import relaxed
from vig_ray.evaluation.tasks.docvqa import anls, levenshtein
from vig_ray.evaluation.vqa import accuracy, normalised, normalised_tokens


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_by_the_number_of_people_who_agree(matches: int, expected: float) -> None:
    # 3 of 10 agree: left out one of them, 2 of 9 are left, which is worth 2/3; else 3/3. (3 * 2/3 + 7) / 10 = 0.9.
    assert accuracy("blue", ["blue"] * matches + ["red"] * (10 - matches)) == pytest.approx(expected)


def test_vqa_accuracy_is_the_mean_over_all_subsets_of_nine() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        people = [str(each) for each in rng.integers(0, 4, 10)]
        subsets = list(itertools.combinations(people, 9))
        expected = np.mean([min(subset.count("2") / 3, 1) for subset in subsets])
        assert accuracy("2", people) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two dogs", "2 dogs"),
        ("The cat, and a dog", "cat and dog"),
        ("left-hand side", "left hand side"),
        ("left- hand", "left hand"),
        ("1,000 people", "1000 people"),
        ("3.5", "3.5"),
        ("St. Mary.", "st mary"),
        ("isnt", "isn't"),
        ("couldnt've couldn'tve", "couldn't've couldn't've"),
        ("somebody'd", "somebodyd"),
        ("yes\n", "yes"),
        ("none", "0"),
        ("who?/what!", "who what"),
        ("", ""),
    ],
)
def test_answers_in_the_form_that_is_compared(text: str, expected: str) -> None:
    assert " ".join(normalised(text).split()) == expected


def test_textvqa_splits_off_what_belongs_to_whom() -> None:
    assert normalised_tokens("Mary's, Ann's?") == "mary 's ann 's"
    assert normalised("Mary's, Ann's?") == "mary's ann's"


def test_anls_by_hand() -> None:
    assert levenshtein("kitten", "sitting") == 3
    assert levenshtein("", "abc") == levenshtein("abc", "") == 3
    assert anls("1996", ["1996"]) == 1
    assert anls(" New   York", ["new york"]) == pytest.approx(1)
    assert anls("sitting", ["kitten"]) == pytest.approx(1 - 3 / 7)
    assert anls("sitting", ["kitten", "sittin"]) == pytest.approx(1 - 1 / 7)
    assert anls("abcd", ["abxy"]) == 0.5
    assert anls("abcd", ["axyz"]) == 0
    assert anls("", ["abc"]) == 0


@pytest.mark.parametrize(
    ("text", "expected", "right"),
    [
        ("105", "100", True),
        ("95", "100", True),
        ("105.1", "100", False),
        ("12%", "0.12", True),
        ("12", "12%", False),
        ("-3", "-3.1", True),
        ("3", "-3", False),
        ("Yes", "yes", True),
        ("yes.", "yes", False),
        ("0.0", "0", False),
        ("0", "0", True),
        ("nan", "5", False),
        ("about 5", "5", False),
    ],
)
def test_relaxed_accuracy(text: str, expected: str, right: bool) -> None:
    assert relaxed(text, expected) is right
