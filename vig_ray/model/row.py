"""A row of a tree of prompts (`vig_ray.model.packing`) as attention needs it: its runs, and what they see of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from vig_ray.model.arrays import on_device
from vig_ray.model.packing import Tree
from vig_ray.model.side_by_side import Batch, Stretch, batches

Stored = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Keys and values by attention layer, [1, heads, tokens, D] each."""


class Above(NamedTuple):
    """Tokens `first` to `past` of a row see all the keys of an ancestor: the row's own from `key` to `key_past`, or,
    of `stored` ones, those places."""

    first: int
    past: int
    key: int
    key_past: int
    stored: Stored | None = None


class Split(NamedTuple):
    """The attention of a row: runs on themselves and tokens on ancestors, in batches and by a call each."""

    own: list[Batch]
    own_alone: list[Stretch]
    above: list[Batch]
    above_alone: list[Above]


@dataclass(eq=False)
class Row:
    """A row of N tokens for attention. `own`: where its runs begin, and N at the end. `above`: what they see of others.

    `keep`: the tokens from one place to another whose keys and values are stored, for later rows.
    """

    own: list[int]
    above: list[Above]
    keep: list[tuple[int, int, Stored]] = field(default_factory=list)
    _ends: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict, repr=False)
    _splits: dict[int, Split] = field(default_factory=dict, repr=False)

    def ends(self, of: Sequence[int], device: Any) -> torch.Tensor:
        """Where segments begin, and where the last ends, int32 on `device`; the same tensor in every layer."""
        key = tuple(of)
        if key not in self._ends:
            self._ends[key] = on_device(np.array(key, dtype=np.int32), device)
        return self._ends[key]

    def split(self, short: int, device: Any) -> Split:
        """What is computed in batches: stretches of at most `short` pairs of a query and a key, where there are several
        such; what is stored, and all the rest, by a call each. The same one in every layer."""
        if short not in self._splits:
            runs = [Stretch(first, past, first, past) for first, past in self.runs]
            own = [run for run in runs if run.pairs <= short]
            near = [above for above in self.above if above.stored is None and Stretch(*above[:4]).pairs <= short]
            own, near = own if len(own) > 1 else [], near if len(near) > 1 else []
            self._splits[short] = Split(
                batches(own, device, causal=True),
                [run for run in runs if run not in own],
                batches([Stretch(*above[:4]) for above in near], device, causal=False),
                [above for above in self.above if above not in near],
            )
        return self._splits[short]

    @property
    def longest(self) -> int:
        """Tokens of its longest run."""
        return max(past - first for first, past in self.runs)

    @property
    def runs(self) -> Iterator[tuple[int, int]]:
        """Where each run begins and ends."""
        return zip(self.own[:-1], self.own[1:], strict=True)


def row_of(
    tree: Tree,
    start: int,
    end: int,
    earlier: Mapping[int, Stored] | None = None,
    later: dict[int, Stored] | None = None,
) -> Row:
    """Tokens `start` to `end` of a tree as a row.

    `earlier`: by the number of a run, what is stored of its tokens before `start`. `later`: is given the stores of runs
    whose tokens in this row must be kept, filled when the model runs.
    """
    own, above, keep = [], [], []
    for kept in tree.kept:
        first, past = max(kept.start, start), min(kept.end, end)
        if first < past:
            above.append(Above(first - start, past - start, kept.first, kept.past, kept.kept.keys_values))
    for number, run in enumerate(tree.runs):
        if run.start >= end:
            break
        if run.past <= start:
            continue
        first, past = max(run.start, start), min(run.end, end)
        visible = min(run.past, end)
        if run.start < start:
            assert earlier is not None, "a tree in several rows needs what is stored of the earlier ones"
            above.append(Above(0, visible - start, 0, min(run.end, start) - run.start, earlier[number]))
        if first < past:
            own.append(first - start)
            if past < visible:
                above.append(Above(past - start, visible - start, first - start, past - start))
            if later is not None and (run.past > end or run.prefix is not None):
                later[number] = {}
                keep.append((first - start, past - start, later[number]))
    return Row([*own, end - start], above, keep)
