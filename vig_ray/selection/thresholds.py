"""The thresholds of a selection: of every group the score of the last sample that is kept, exactly, in four scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from vig_ray.errors import StageError
from vig_ray.selection.config import SelectConfig
from vig_ray.selection.counts import Counted, count_rows, merge
from vig_ray.selection.plan import Plan
from vig_ray.selection.rank import EVERYTHING, Groups, columns, count, ranks
from vig_ray.selection.strategy import Strategy
from vig_ray.tables.scan import Files
from vig_ray.tables.threshold import SCANS, Search, add_up, quota_of
from vig_ray.tables.thresholds import Searches, gathering

Sizes = np.ndarray[Any, np.dtype[np.int64]]
"""How many samples each group of --within has."""


@dataclass(frozen=True)
class _Survey:
    """The first scan of a block: its rows by kind and source, and the first digits of what they are ranked by."""

    strategy: Strategy
    groups: Groups
    config: SelectConfig

    def __call__(self, table: pa.Table) -> tuple[Counted, Any]:
        ranked = ranks(table, self.strategy, self.groups, self.config)
        rows = count_rows(table, ranked.scored, unmeasured=ranked.unmeasured)
        if self.strategy.ranking is None or self.groups.within is not None:
            return rows, {}
        present = {int(group): (int(group), Search(1)) for group in np.unique(ranked.group[ranked.eligible])}
        return rows, count(ranked, present)


@dataclass(frozen=True)
class _Count:
    """A later scan: the next digit of each search."""

    strategy: Strategy
    groups: Groups
    config: SelectConfig
    searches: dict[Any, tuple[int, Search]]

    def __call__(self, table: pa.Table) -> Any:
        ranked = ranks(table, self.strategy, self.groups, self.config)
        return count(ranked, self.searches)


@dataclass(frozen=True)
class _CountWithin:
    """A scan of the groups of --within: the next digit of each, for every share."""

    strategy: Strategy
    groups: Groups
    config: SelectConfig
    searches: tuple[Searches, ...]

    def __call__(self, table: pa.Table) -> Any:
        ranked = ranks(table, self.strategy, self.groups, self.config)
        bits, group = ranked.bits[ranked.eligible], ranked.group[ranked.eligible]
        return [each.count(bits, group) for each in self.searches]


def _within(
    plan: Plan, files: Files, groups: Groups, shares: Sequence[float], sizes: Sizes
) -> list[np.ndarray[Any, Any]]:
    """For each share every group's threshold: bits, uint64 [groups]."""
    of_size = {share: {size: quota_of(size, share) for size in np.unique(sizes).tolist()} for share in shares}
    searches = tuple(
        Searches.of(np.array([of_size[share][size] for size in sizes.tolist()], np.int64)) for share in shares
    )
    for _ in range(SCANS):
        counted = _CountWithin(plan.strategy, groups, plan.config, searches)
        parts = files.scan(columns(plan.strategy, groups), counted)
        whole = [gathering() for _ in shares]
        for part in parts:
            for of_share, pairs in zip(whole, part, strict=True):
                of_share.add(pairs)
        searches = tuple(each.narrowed(of_share.whole()) for each, of_share in zip(searches, whole, strict=True))
    return [each.bits for each in searches]


def thresholds_of(
    plan: Plan, files: Files, groups: Groups, sizes: Sizes | None
) -> tuple[Counted, list[np.ndarray[Any, Any]]]:
    """The counts of all rows, and for each p (or the one r) every group's threshold: bits, uint64 [groups].

    `sizes`: of the groups of --within.
    """
    config, strategy = plan.config, plan.strategy
    needed = sorted({*columns(strategy, groups), "source", "num_answer_tokens", "error"})
    surveyed = Counted()
    first: dict[Any, Any] = {}
    for rows, part in files.scan(needed, _Survey(strategy, groups, config)):
        surveyed = merge((surveyed, rows))
        first = add_up((part,), first)
    if not surveyed.total("scored"):
        raise StageError(f"{plan.scores}: no sample has a score, so there is nothing to select")
    for source in groups.sources:
        if not surveyed.by_source.get(source, {}).get("scored"):
            raise StageError(f"--quota {source}: no sample of this source has a score in {plan.scores}")
    none = not first if sizes is None else not sizes.sum()
    if surveyed.total("unmeasured") == surveyed.total("scored") or (strategy.ranking is not None and none):
        raise StageError(f"{plan.scores}: {_why_none(plan, surveyed)}")
    size = len(groups)
    shares = config.p if strategy.share == "p" else (config.r,)
    if sizes is not None:
        return surveyed, _within(plan, files, groups, shares, sizes)
    if strategy.ranking is None:
        return surveyed, [np.full(size, EVERYTHING, dtype=np.uint64)]
    searches = {
        (share, group): (
            group,
            Search(quota_of(int(counts.sum()), groups.share_of(group, config.quota, share))).narrowed(counts),
        )
        for share in shares
        for group, counts in first.items()
    }
    for _ in range(SCANS - 1):
        whole = add_up(files.scan(columns(strategy, groups), _Count(strategy, groups, config, searches)))
        searches = {name: (group, search.narrowed(whole[name])) for name, (group, search) in searches.items()}
    thresholds = []
    for share in shares:
        bits = np.full(size, np.iinfo(np.uint64).max, dtype=np.uint64)
        for (of_share, group), (_, search) in searches.items():
            if of_share == share:
                bits[group] = search.bits
        thresholds.append(bits)
    return surveyed, thresholds


def _why_none(plan: Plan, surveyed: Counted) -> str:
    """Why no sample with a score may be kept."""
    strategy, scored, lacking = plan.strategy, surveyed.total("scored"), surveyed.total("unmeasured")
    measure = f"{strategy.measure} in {plan.measures.directory}" if plan.measures else "the loss of its answers alone"
    if lacking == scored:
        return f"none of {scored:,} scored samples has {measure}, which --strategy {strategy.name} needs"
    within = "an IFD of 1 or less" if strategy.ranking == "ifd" else "a score above 0"
    beside = f", and {lacking:,} lack {measure}" if lacking else ""
    return f"no sample has {within}{beside}; --keep-negative ranks the others too"
