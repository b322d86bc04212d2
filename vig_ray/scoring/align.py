"""Values of one tokenizer's tokens carried over to another's tokens of the same text, by the characters they cover.

Pure functions. Two tokenizers cut the same answers at different places:

    values of      |  A   | red  | circle |           a text-only model's tokens, U in all
    carried onto   |  A   |   red cir  | cle |        the tokens of a vision-language model, T in all

Between two places where both cut lies a block. Where the tokens of a block are the same on both sides, each takes its
counterpart's value. Elsewhere a value lies evenly on its token's characters, and each of the other tokens takes what
lies on its own: exact where both its ends are ends of tokens that the values are of, shared in proportion to characters
where not.

    total    a value belongs to its token as a whole, as a log-prob does: what a token takes is a sum, and the values of
             an answer sum to what they did, wherever all its characters are covered on both sides
    level    a value holds for each character, as a weight or a mask does: what a token takes is a mean
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Kind = Literal["total", "level"]
Ints = npt.NDArray[np.integer[Any]]


class Carried(NamedTuple):
    """`values` [T], float64. `exact` [T]: no value had to be shared out by characters for it."""

    values: npt.NDArray[np.float64]
    exact: npt.NDArray[np.bool_]


def carry(
    values_U: npt.ArrayLike,
    chars_U: Ints,
    chars_T: Ints,
    *,
    turns_U: Ints | None = None,
    turns_T: Ints | None = None,
    kind: Kind = "total",
) -> Carried:
    """Carry `values_U` over to the tokens that cover `chars_T`.

    `chars_U` [U, 2], `chars_T` [T, 2]: each token's first character and the one past its last, in the text of its turn,
    in the text's order; `turns_U` [U], `turns_T` [T]: which text each is of, rising, by default all of one.

    A character between two tokens that neither covers (a space that a tokenizer drops) counts with the token behind it.
    Several tokens may cover one character (bytes of it): what lies on it is shared evenly among them. A token that
    covers none belongs to the text that begins at its place (a lone prefix space), its value to the first token there;
    carried onto one beside others that cover some, it takes 0 of a total, and of a level the mean of the block. At the
    end of a text such tokens are ends of turns: theirs go to each other, evenly where they aren't as many. Tokens
    without any counterpart take 0, which is not exact; what has no counterpart there (the text behind a cut-off answer)
    is left out.

    Raises ValueError where values and characters are not as many, or turns are missing on one side.
    """
    values = np.asarray(values_U, dtype=np.float64)
    if len(values) != len(chars_U):
        raise ValueError(f"{len(values)} values of {len(chars_U)} tokens")
    if (turns_U is None) != (turns_T is None):
        raise ValueError("turns are given of one side only")
    of_U = np.zeros(len(chars_U), dtype=np.int64) if turns_U is None else np.asarray(turns_U)
    of_T = np.zeros(len(chars_T), dtype=np.int64) if turns_T is None else np.asarray(turns_T)
    carried = Carried(np.zeros(len(chars_T)), np.zeros(len(chars_T), dtype=np.bool_))
    for turn in np.unique(of_T).tolist():
        here_U, here_T = np.flatnonzero(of_U == turn), np.flatnonzero(of_T == turn)
        if len(here_U):
            found = _of_a_turn(values[here_U], _without_gaps(chars_U[here_U]), _without_gaps(chars_T[here_T]), kind)
            carried.values[here_T], carried.exact[here_T] = found
    return carried


def _of_a_turn(
    values_U: npt.NDArray[np.float64], spans_U: npt.NDArray[np.int64], spans_T: npt.NDArray[np.int64], kind: Kind
) -> Carried:
    """What the tokens of one text take."""
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
        out.values[some_T], out.exact[some_T] = _of_a_block(values_U[some_U], spans_U[some_U], spans_T[some_T], kind)
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


def _of_a_block(
    values_U: npt.NDArray[np.float64], spans_U: npt.NDArray[np.int64], spans_T: npt.NDArray[np.int64], kind: Kind
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The values and their exactness within one block, [T] each; there are tokens on both sides."""
    if np.array_equal(spans_U, spans_T):
        return values_U, np.ones(len(spans_T), dtype=np.bool_)
    covers_U, covers_T = (spans[:, 1] > spans[:, 0] for spans in (spans_U, spans_T))
    alone = len(spans_T) == 1
    if not covers_T.any() or not covers_U.any():
        # Ends of turns, or all of a text on one token.
        share = values_U.sum() / len(spans_T) if kind == "total" else values_U.mean()
        return np.full(len(spans_T), share), np.full(len(spans_T), alone or kind == "level")
    first, last = int(min(spans_U[:, 0].min(), spans_T[:, 0].min())), int(max(spans_U[:, 1].max(), spans_T[:, 1].max()))
    on_char = _on_characters(values_U, spans_U - first, covers_U, last - first, kind)
    sharers = np.zeros(last - first)
    for start, end in (spans_T[covers_T] - first).tolist():
        sharers[start:end] += 1
    out = np.zeros(len(spans_T)) if kind == "total" else np.full(len(spans_T), on_char.mean())
    exact = np.zeros(len(spans_T), dtype=np.bool_)
    ends_U = {int(place) for place in spans_U[covers_U].ravel()}
    for place in np.flatnonzero(covers_T).tolist():
        start, end = spans_T[place].tolist()
        some = slice(start - first, end - first)
        out[place] = (on_char[some] / sharers[some]).sum() if kind == "total" else on_char[some].mean()
        cut_by_none = not any(a < edge < b for edge in (start, end) for a, b in spans_U.tolist())
        exact[place] = {start, end} <= ends_U and cut_by_none and (sharers[some] == 1).all()
    return out, exact


def _on_characters(
    values_U: npt.NDArray[np.float64],
    spans_U: npt.NDArray[np.int64],
    covers_U: npt.NDArray[np.bool_],
    length: int,
    kind: Kind,
) -> npt.NDArray[np.float64]:
    """What lies on each character of a block, float64 [length]."""
    values = values_U.copy()
    covering: Sequence[int] = np.flatnonzero(covers_U).tolist()
    if kind == "total":
        for place in np.flatnonzero(~covers_U).tolist():
            values[next((other for other in covering if other > place), covering[-1])] += values_U[place]
    on_char, tokens = np.zeros(length), np.zeros(length)
    for place in covering:
        start, end = spans_U[place].tolist()
        on_char[start:end] += values[place] / (end - start) if kind == "total" else values[place]
        tokens[start:end] += 1
    return on_char if kind == "total" else on_char / np.maximum(tokens, 1)
