"""Values carried over by characters: sums, means, identity, and what is exact, against a few lines by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vig_ray.model.by_characters import means, sums

Spans = list[tuple[int, int]]


def spans(cuts: list[int], length: int) -> Spans:
    """The pieces of a text that is cut at these places."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < length}), length]
    return list(itertools.pairwise(edges))


@st.composite
def tokens(draw: Any, length: int) -> Spans:
    """Pieces of a text, one perhaps several bytes of a character, with a lone space before and an end behind."""
    made = spans(draw(st.lists(st.integers(1, max(1, length - 1)), max_size=8)), length)
    bytes_of = draw(st.integers(0, len(made) - 1))
    if made[bytes_of][1] - made[bytes_of][0] == 1:
        made[bytes_of : bytes_of + 1] = [made[bytes_of]] * draw(st.integers(1, 4))
    before = [(0, 0)] * draw(st.integers(0, 1))
    return [*before, *made, (length, length)]


@st.composite
def two_sides(draw: Any) -> tuple[list[float], Spans, Spans]:
    length = draw(st.integers(1, 14))
    ours, theirs = draw(tokens(length)), draw(tokens(length))
    values = draw(st.lists(st.floats(-20, 0), min_size=len(ours), max_size=len(ours)))
    return values, ours, theirs


def of(values: Any, ours: Spans, theirs: Spans, **options: Any) -> Any:
    return sums(values, np.array(ours), np.array(theirs), **options)


@given(two_sides())
def test_sums_are_kept(made: tuple[list[float], Spans, Spans]) -> None:
    values, ours, theirs = made
    assert of(values, ours, theirs).values.sum() == pytest.approx(sum(values), abs=1e-9)


@given(two_sides())
def test_the_same_tokens_keep_their_values(made: tuple[list[float], Spans, Spans]) -> None:
    values, ours, _ = made
    found = of(values, ours, ours)
    assert found.values.tolist() == values
    assert found.exact.all()


@given(two_sides())
def test_a_text_as_one_token_takes_it_all(made: tuple[list[float], Spans, Spans]) -> None:
    values, ours, _ = made
    length = ours[-1][0]
    found = of(values, ours, [(0, length), (length, length)])
    assert found.values == pytest.approx([sum(values[:-1]), values[-1]], abs=1e-9)
    assert found.exact.all()


@given(two_sides())
def test_means_are_of_the_characters_of_a_token(made: tuple[list[float], Spans, Spans]) -> None:
    """By a loop over characters, of which the last token that covers one has it."""
    values, ours, theirs = made
    on_char = {place: value for value, (first, past) in zip(values, ours, strict=True) for place in range(first, past)}
    bare = [value for value, (first, past) in zip(values, ours, strict=True) if first == past]
    found = means(values, np.array(ours), np.array(theirs))
    expected = [np.mean([on_char[place] for place in range(*span)] if span[0] < span[1] else bare) for span in theirs]
    assert found.values == pytest.approx(expected, abs=1e-9)
    edges = {edge for span in ours for edge in span if span[0] < span[1]}
    assert found.exact.tolist() == [{*span} <= edges or span[0] == span[1] for span in theirs]


def test_means_where_nothing_is_known() -> None:
    """Without `gaps` characters that no token covers have no part; with them they go with what is before."""
    values, ours = [1.0, 3.0], np.array([[0, 3], [4, 6]])
    theirs = np.array([[0, 3], [0, 5], [3, 4], [4, 6], [6, 8], [6, 6]])
    np.testing.assert_allclose(means(values, ours, theirs).values, [1.0, 1.5, np.nan, 3.0, np.nan, np.nan])
    through = means(values, ours, theirs, gaps=True)
    np.testing.assert_allclose(through.values, [1.0, 7 / 5, 1.0, 3.0, 3.0, np.nan])
    assert through.exact.tolist() == [True, False, True, True, False, False]
    turns = {"turns_U": np.array([0, 0]), "turns_T": np.array([0, 0, 0, 0, 0, 1])}
    assert np.isnan(means(values, ours, theirs, **turns, gaps=True).values).tolist() == [False] * 5 + [True]
    assert means([2.0, 4.0], np.array([[0, 2], [2, 2]]), np.array([[2, 2]])).values.tolist() == [4.0]


@given(two_sides())
def test_pieces_take_what_lies_on_their_characters(made: tuple[list[float], Spans, Spans]) -> None:
    """Where every token covers characters that no other of its side covers, by a loop over characters."""
    values, ours, theirs = made
    ours_bare = list(dict.fromkeys(span for span in ours if span[0] < span[1]))
    theirs_bare = list(dict.fromkeys(span for span in theirs if span[0] < span[1]))
    values = values[: len(ours_bare)]
    on_char = [value / (past - first) for value, (first, past) in zip(values, ours_bare, strict=True)
               for _ in range(first, past)]  # fmt: skip
    found = of(values, ours_bare, theirs_bare)
    assert found.values == pytest.approx([sum(on_char[first:past]) for first, past in theirs_bare], abs=1e-9)
    edges = {edge for span in ours_bare for edge in span}
    assert found.exact.tolist() == [{first, past} <= edges for first, past in theirs_bare]


def test_words_and_letters() -> None:
    #       "a red cat": "a", " red", " cat"  onto  "a", " r", "ed c", "at"
    found = of([-1.0, -4.0, -2.0, -0.5], [(0, 1), (1, 5), (5, 9), (9, 9)], [(0, 1), (1, 3), (3, 7), (7, 9), (9, 9)])
    assert found.values.tolist() == [-1.0, -2.0, -2.0 - 1.0, -1.0, -0.5]
    assert found.exact.tolist() == [True, False, False, False, True]


def test_bytes_of_a_character() -> None:
    """One token here, three bytes there, and the other way round."""
    one, three = [(0, 1), (1, 2), (2, 2)], [(0, 1), (1, 2), (1, 2), (1, 2), (2, 2)]
    back = of([-1.0, -6.0, -0.5], one, three)
    assert back.values.tolist() == [-1.0, -2.0, -2.0, -2.0, -0.5]
    assert back.exact.tolist() == [True, False, False, False, True]
    there = of([-1.0, -1.0, -2.0, -3.0, -0.5], three, one)
    assert there.values.tolist() == [-1.0, -6.0, -0.5]
    assert there.exact.all()


def test_spaces_that_one_side_drops() -> None:
    """A space between words goes with the one behind it, and a lone space before the text with its first word."""
    found = of([-1.0, -4.0], [(0, 1), (1, 5)], [(0, 1), (2, 5)])
    assert found.values.tolist() == [-1.0, -4.0]
    assert found.exact.all()
    lone = of([-0.25, -1.0, -4.0], [(0, 0), (0, 1), (1, 5)], [(0, 1), (1, 5)])
    assert lone.values.tolist() == [-1.25, -4.0]
    assert of([-1.0], [(0, 1)], [(0, 0), (0, 1)]).values.tolist() == [0.0, -1.0]


def test_ends_and_turns() -> None:
    """Ends go to ends of their own turn; of a cut-off answer what lies behind it is left out."""
    turns = {"turns_U": np.array([0, 0, 1, 1]), "turns_T": np.array([0, 0, 0, 2])}
    chars = np.array([(0, 2), (2, 2), (0, 2), (2, 2)])
    found = sums([-1.0, -3.0, -5.0, -7.0], chars, np.array([(0, 2), (2, 2), (2, 2), (0, 3)]), **turns)
    assert found.values.tolist() == [-1.0, -1.5, -1.5, 0.0]
    assert found.exact.tolist() == [True, False, False, False]
    cut = of([-1.0, -4.0, -9.0], [(0, 1), (1, 5), (5, 5)], [(0, 1), (1, 3)])
    assert cut.values.tolist() == [-1.0, -2.0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="1 values of 2 tokens"):
        of([1.0], [(0, 1), (1, 2)], [(0, 2)])
    with pytest.raises(ValueError, match="of one side only"):
        of([1.0], [(0, 1)], [(0, 1)], turns_U=np.array([0]))
