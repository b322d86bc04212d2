"""Values of one tokenizer's tokens on another's tokens of the same text, by the characters that both cover.

Plain numpy. Two tokenizers cut the same answers at different places:

    values of      |  A   | red  | circle |           the tokens of one, U in all
    carried onto   |  A   |   red cir  | cle |        those of the other, T in all

    sums     a value belongs to its token as a whole, as a log-prob does. It lies evenly on the token's characters, and
             each of the other tokens takes the sum of what lies on its own: the values of an answer sum to what they
             did, wherever all its characters are covered on both sides.
    means    a value holds for each character of its token, as a weight does: the others take the mean over theirs.

Both are by turns: each text is carried over by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Carried(NamedTuple):
    """`values` [T], float64. `exact` [T]: no value was cut, the token begins and ends where those of the values do."""

    values: Floats
    exact: Flags


def sums(
    values_U: npt.ArrayLike, chars_U: Ints, chars_T: Ints, *, turns_U: Ints | None = None, turns_T: Ints | None = None
) -> Carried:
    """Share `values_U` out to the tokens that cover `chars_T`.

    `chars_U` [U, 2], `chars_T` [T, 2]: each token's first character and the one past its last, in the text of its turn,
    in the text's order; `turns_U` [U], `turns_T` [T]: which text each is of, rising, by default all of one.

    Between two places where both cut lies a block. Where the tokens of a block are the same on both sides, each takes
    its counterpart's value; elsewhere it is shared out. A character between two tokens that neither covers (a space
    that a tokenizer drops) counts with the token behind it. Several tokens may cover one character (bytes of it): what
    lies on it is shared evenly among them. A token that covers none belongs to the text that begins at its place (a
    lone prefix space), its value to the first token there; carried onto one beside others that cover some, it takes 0.
    At the end of a text such tokens are ends of turns: theirs go to each other, evenly where they aren't as many.
    Tokens without any counterpart take 0, which is not exact; what has no counterpart there (the text behind a cut-off
    answer) is left out.

    Raises ValueError where values and characters are not as many, or turns are missing on one side.
    """
    return _by_turns(_sums_of_a_turn, values_U, chars_U, chars_T, turns_U, turns_T, nothing=0.0)


def means(
    values_U: npt.ArrayLike,
    chars_U: Ints,
    chars_T: Ints,
    *,
    turns_U: Ints | None = None,
    turns_T: Ints | None = None,
    gaps: bool = False,
) -> Carried:
    """The mean of `values_U` over the characters of each token of `chars_T`; the arguments and errors are `sums`'.

    Characters that no token covers have no part in it, and a token of such alone takes NaN. With `gaps` they go with
    what is before them, or, at the beginning, behind. Of several tokens that cover one character the last one counts.
    A token that covers none, such as the end of a turn, takes the mean of those of its turn that cover none, NaN where
    there is none.
    """

    def of_a_turn(values: Floats, chars_of: Ints, chars_onto: Ints) -> Carried:
        return _means_of_a_turn(values, chars_of, chars_onto, gaps)

    return _by_turns(of_a_turn, values_U, chars_U, chars_T, turns_U, turns_T, nothing=np.nan)


def _by_turns(
    of_a_turn: Callable[[Floats, Ints, Ints], Carried],
    values_U: npt.ArrayLike,
    chars_U: Ints,
    chars_T: Ints,
    turns_U: Ints | None,
    turns_T: Ints | None,
    *,
    nothing: float,
) -> Carried:
    """`of_a_turn` of each text's tokens; `nothing`: for the tokens of a text that the other side hasn't got."""
    values = np.asarray(values_U, dtype=np.float64)
    if len(values) != len(chars_U):
        raise ValueError(f"{len(values)} values of {len(chars_U)} tokens")
    if (turns_U is None) != (turns_T is None):
        raise ValueError("turns are given of one side only")
    of_U = np.zeros(len(chars_U), dtype=np.int64) if turns_U is None else np.asarray(turns_U)
    of_T = np.zeros(len(chars_T), dtype=np.int64) if turns_T is None else np.asarray(turns_T)
    carried = Carried(np.full(len(chars_T), nothing), np.zeros(len(chars_T), dtype=np.bool_))
    for turn in np.unique(of_T).tolist():
        here_U, here_T = np.flatnonzero(of_U == turn), np.flatnonzero(of_T == turn)
        if len(here_U):
            carried.values[here_T], carried.exact[here_T] = of_a_turn(values[here_U], chars_U[here_U], chars_T[here_T])
    return carried


def _means_of_a_turn(values_U: Floats, chars_U: Ints, chars_T: Ints, gaps: bool) -> Carried:
    on_char = np.full(int(max(chars_U.max(initial=0), chars_T.max(initial=0))), np.nan)
    covers = chars_U[:, 0] < chars_U[:, 1]
    for value, (first, past) in zip(values_U[covers], chars_U[covers].tolist(), strict=True):
        on_char[first:past] = value
    known = np.flatnonzero(np.isfinite(on_char))
    if gaps and len(known):
        before = np.maximum(np.searchsorted(known, np.arange(len(on_char)), side="right") - 1, 0)
        on_char = on_char[known[before]]
    bare = values_U[~covers].mean() if (~covers).any() else np.nan
    ends = set(chars_U[covers].ravel().tolist())
    out = Carried(np.full(len(chars_T), np.nan), np.zeros(len(chars_T), dtype=np.bool_))
    for token, (first, past) in enumerate(chars_T.tolist()):
        some = on_char[first:past]
        if first == past:
            out.values[token], out.exact[token] = bare, (~covers).any()
        elif np.isfinite(some).any():
            out.values[token], out.exact[token] = np.nanmean(some), {first, past} <= ends
    return out


def _sums_of_a_turn(values_U: Floats, chars_U: Ints, chars_T: Ints) -> Carried:
    spans_U, spans_T = _without_gaps(chars_U), _without_gaps(chars_T)
    out = Carried(np.zeros(len(spans_T)), np.zeros(len(spans_T), dtype=np.bool_))
    cuts = _cuts(spans_U, spans_T)
    blocks_U, blocks_T = (
        np.maximum(np.searchsorted(cuts, spans[:, 0], side="right") - 1, 0) for spans in (spans_U, spans_T)
    )
    count_U, count_T = (np.bincount(blocks, minlength=len(cuts)) for blocks in (blocks_U, blocks_T))
    of_block = np.zeros(len(cuts), dtype=np.int64)
    of_block[blocks_U] = np.arange(len(blocks_U))
    other = of_block[blocks_T]
    # Most blocks of most texts: one token, the same on both sides.
    same = (count_U[blocks_T] == 1) & (count_T[blocks_T] == 1) & (spans_U[other] == spans_T).all(axis=1)
    out.values[same], out.exact[same] = values_U[other[same]], True
    for block in np.setdiff1d(blocks_T[~same], np.flatnonzero(count_U == 0)).tolist():
        some_U, some_T = blocks_U == block, blocks_T == block
        out.values[some_T], out.exact[some_T] = _sums_of_a_block(values_U[some_U], spans_U[some_U], spans_T[some_T])
    return out


def _without_gaps(chars: Ints) -> npt.NDArray[np.int64]:
    """Spans [n, 2] of which each one begins where those before it ended, at the latest; those of the same characters
    (bytes of one) stay alike."""
    given = np.array(chars, dtype=np.int64).reshape(-1, 2)
    spans, end = given.copy(), 0
    for place, (first, past) in enumerate(given.tolist()):
        if past <= first:
            continue
        if place and (given[place] == given[place - 1]).all():
            spans[place] = spans[place - 1]
        elif first > end:
            spans[place, 0] = end
        end = max(end, past)
    return spans


def _cuts(*sides: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The places, rising, that no token of any side covers on both its hands."""
    spans = np.concatenate(sides)
    spans = spans[spans[:, 1] > spans[:, 0]]
    places = np.unique(spans)
    if not len(places):
        return np.zeros(1, dtype=np.int64)
    # Of each token: the places behind its first one and before its last are none.
    inside = np.zeros(len(places) + 1, dtype=np.int64)
    np.add.at(inside, np.searchsorted(places, spans[:, 0]) + 1, 1)
    np.add.at(inside, np.searchsorted(places, spans[:, 1]), -1)
    cuts: npt.NDArray[np.int64] = places[np.cumsum(inside)[:-1] == 0]
    return cuts


def _sums_of_a_block(
    values_U: Floats, spans_U: npt.NDArray[np.int64], spans_T: npt.NDArray[np.int64]
) -> tuple[Floats, Flags]:
    """The values and their exactness within one block, [T] each; there are tokens on both sides."""
    if np.array_equal(spans_U, spans_T):
        return values_U, np.ones(len(spans_T), dtype=np.bool_)
    covers_U, covers_T = (spans[:, 1] > spans[:, 0] for spans in (spans_U, spans_T))
    if not covers_T.any() or not covers_U.any():
        # Ends of turns, or all of a text on one token.
        return np.full(len(spans_T), values_U.sum() / len(spans_T)), np.full(len(spans_T), len(spans_T) == 1)
    first, last = int(min(spans_U[:, 0].min(), spans_T[:, 0].min())), int(max(spans_U[:, 1].max(), spans_T[:, 1].max()))
    on_char = _on_characters(values_U, spans_U - first, covers_U, last - first)
    sharers = np.zeros(last - first)
    for start, end in (spans_T[covers_T] - first).tolist():
        sharers[start:end] += 1
    out, exact = np.zeros(len(spans_T)), np.zeros(len(spans_T), dtype=np.bool_)
    ends_U = {int(place) for place in spans_U[covers_U].ravel()}
    for place in np.flatnonzero(covers_T).tolist():
        start, end = spans_T[place].tolist()
        some = slice(start - first, end - first)
        out[place] = (on_char[some] / sharers[some]).sum()
        cut_by_none = not any(a < edge < b for edge in (start, end) for a, b in spans_U.tolist())
        exact[place] = {start, end} <= ends_U and cut_by_none and (sharers[some] == 1).all()
    return out, exact


def _on_characters(values_U: Floats, spans_U: npt.NDArray[np.int64], covers_U: Flags, length: int) -> Floats:
    """What lies on each character of a block, float64 [length]."""
    values = values_U.copy()
    covering: Sequence[int] = np.flatnonzero(covers_U).tolist()
    for place in np.flatnonzero(~covers_U).tolist():
        values[next((other for other in covering if other > place), covering[-1])] += values_U[place]
    on_char = np.zeros(length)
    for place in covering:
        start, end = spans_U[place].tolist()
        on_char[start:end] += values[place] / (end - start)
    return on_char
