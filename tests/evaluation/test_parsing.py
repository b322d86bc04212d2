"""What answers say, by each benchmark's rule."""

from __future__ import annotations

import pytest

from vig_ray.evaluation.parsing import (
    contained_yes_no,
    exactly_yes_no,
    first_letter,
    first_sentence_yes_no,
    leading_yes_no,
    lettered,
    option_letter,
)


@pytest.mark.parametrize(
    ("text", "exact", "leading", "contained", "first_sentence"),
    [
        ("Yes", "yes", "yes", "yes", "yes"),
        (" NO \n", "no", "no", "no", "yes"),  # POPE's authors know "No" and "no" alone
        ("Yes.", None, "yes", "yes", "yes"),
        ("y", None, "yes", None, "yes"),
        ("N.", None, "no", None, "yes"),
        ("No, there is no dog.", None, "no", "no", "no"),
        ("There is not one.", None, None, "no", "no"),
        ("I know it. No.", None, None, "no", "yes"),  # "know"; and only the first sentence counts
        ("Yes. There is no doubt", None, "yes", "yes", "yes"),
        ("Eyes are shown", None, "yes", "yes", "yes"),  # "yes" within the first four characters
        ("", None, None, None, "yes"),
    ],
)
def test_yes_and_no(text: str, exact: str | None, leading: str | None, contained: str, first_sentence: str) -> None:
    read = exactly_yes_no(text), leading_yes_no(text), contained_yes_no(text), first_sentence_yes_no(text)
    assert read == (exact, leading, contained, first_sentence)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("C) a cat", "C"),
        ("B: a dog", "B"),
        ("The answer is D", "D"),
        ("The answer is (A), not (B) ", "B"),  # the last of several
        ("A dog", "A"),  # nothing tells an article from an option
        ("It could be A. or B. in the end", "B"),
        ("I choose C because of A", "A"),  # alone at the end is surer than after words
        ("Because", "B"),
        ("b", None),
        ("  ", None),
        ("'D'", "D"),
    ],
)
def test_letters(text: str, letter: str | None) -> None:
    assert option_letter(text, "ABCD") == letter


def test_first_letters() -> None:
    assert [first_letter(text) for text in ("b", " C. cat", "Dog", "The B", "", "E")] == [
        "B",
        "C",
        "D",
        None,
        None,
        None,
    ]
    assert lettered(["red", "blue"]) == "A. red\nB. blue"
