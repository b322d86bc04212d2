"""Short stretches of a row, many at a time: as padded batches, where a kernel call for each would cost more than it
computes.

A stretch is queries of the row on keys of the row. Of a batch no token is a query twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from vig_ray.model.arrays import on_device

_PAIRS_AT_ONCE = 2**20  # of a query and a key, padded ones too: 128 MB of scores with 32 heads
_MOST_PADDING = 1.25  # pairs of a batch over those that there are


class Stretch(NamedTuple):
    """Tokens `first` to `past` of a row as queries on its tokens `key` to `key_past`."""

    first: int
    past: int
    key: int
    key_past: int

    @property
    def lengths(self) -> tuple[int, int]:
        """Of its keys and of its queries."""
        return self.key_past - self.key, self.past - self.first

    @property
    def pairs(self) -> int:
        """Of a query and a key."""
        return (self.past - self.first) * (self.key_past - self.key)


class Places(NamedTuple):
    """Tokens of a row in R stretches of at most M. `shape`: (R, M). `padded`: the place of each, int64 [R * M], that of
    its stretch's first where there is none; `real`: which of them there are, int64 [Q]; `place`: their places, [Q]."""

    shape: tuple[int, int]
    padded: torch.Tensor
    real: torch.Tensor
    place: torch.Tensor

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Of [1, heads, N, ...] these tokens, [R, heads, M, ...]."""
        tokens = x[0].transpose(0, 1).index_select(0, self.padded)
        return tokens.view(*self.shape, *tokens.shape[1:]).transpose(1, 2)

    def pick(self, x: torch.Tensor) -> torch.Tensor:
        """Of [R, heads, M, ...] the tokens that there are, [1, heads, Q, ...]."""
        return x.transpose(1, 2).flatten(0, 1).index_select(0, self.real).transpose(0, 1)[None]

    def is_padding(self) -> torch.Tensor:
        """Where there is no token, bool [R, M]."""
        padding = torch.ones(len(self.padded), dtype=torch.bool, device=self.padded.device)
        return padding.index_fill_(0, self.real, 0).view(self.shape)


class Batch(NamedTuple):
    """Stretches side by side. `hidden`: which keys a query doesn't see, bool, to be broadcast to [R, heads, M, K]."""

    queries: Places
    keys: Places
    hidden: torch.Tensor


def batches(stretches: Sequence[Stretch], device: Any, *, causal: bool) -> list[Batch]:
    """Batches of stretches of like size; those that share queries in different ones, in their order."""
    levels: list[list[Stretch]] = []
    for stretch in stretches:  # in a tree a stretch's queries are another's, or part of them, or none of them
        level = next((each for each in levels if each[-1].past <= stretch.first), None)
        if level is None:
            levels.append(level := [])
        level.append(stretch)
    return [_batch(group, device, causal) for level in levels for group in _alike(level)]


def _alike(stretches: Sequence[Stretch]) -> Iterator[list[Stretch]]:
    """Groups of stretches, in each of which padding adds little."""
    group: list[Stretch] = []
    longest, pairs = (0, 0), 0
    for stretch in sorted(stretches, key=lambda each: each.lengths):
        grown = max(longest[0], stretch.lengths[0]), max(longest[1], stretch.lengths[1])
        padded = (len(group) + 1) * grown[0] * grown[1]
        if group and padded > min(_PAIRS_AT_ONCE, _MOST_PADDING * (pairs + stretch.pairs)):
            yield group
            group, grown, pairs = [], stretch.lengths, 0
        group.append(stretch)
        longest, pairs = grown, pairs + stretch.pairs
    if group:
        yield group


def _batch(stretches: Sequence[Stretch], device: Any, causal: bool) -> Batch:
    queries = _places([(each.first, each.past) for each in stretches], device)
    if causal:  # keys are the queries themselves, and none sees what comes after it
        size = queries.shape[1]
        return Batch(queries, queries, torch.ones(size, size, dtype=torch.bool, device=device).triu(1))
    keys = _places([(each.key, each.key_past) for each in stretches], device)
    return Batch(queries, keys, keys.is_padding()[:, None, None])


def _places(ranges: Sequence[tuple[int, int]], device: Any) -> Places:
    first_R, past_R = np.array(ranges, dtype=np.int64).T
    step_M = np.arange((past_R - first_R).max())
    is_real_RM = step_M < (past_R - first_R)[:, None]
    padded_RM = first_R[:, None] + np.where(is_real_RM, step_M, 0)
    arrays = padded_RM.ravel(), np.flatnonzero(is_real_RM), padded_RM[is_real_RM]
    padded, real, place = (on_device(array, device) for array in arrays)
    return Places(is_real_RM.shape, padded, real, place)


def put(into: torch.Tensor, place: torch.Tensor, tokens: torch.Tensor) -> None:
    """Write tokens [1, heads, Q, ...] to their places in [1, heads, N, ...]."""
    into[0].transpose(0, 1).index_copy_(0, place, tokens[0].transpose(0, 1).to(into.dtype))


def taken(x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """The tokens at these places of [1, heads, N, ...], as [1, heads, Q, ...]."""
    return x[0].transpose(0, 1).index_select(0, place).transpose(0, 1)[None]
