"""Does a selection tilt? Answers to the same kind of question before and after, against a selection by chance.

A group is the samples of one source with one kind of question (its first two words). Within it the shares of answers
are compared before and after. Where answers are there several times, their TV, the total variation of the shares,
is the share of the kept samples that would need another answer for the shares to be what they were. Of answers that are
all different, captions say, it is the greatest change of the share of answers that hold some token: TV is at least
that. A random selection has some of it, too, the more the fewer are kept: the same number is drawn from each group many
times, and the excess over the mean of that is what the tilt is. Over all groups it is the mean by kept samples.

Leaving out sources or kinds of questions that need no image is what a selection is for, and no tilt: it is told, too,
but answers alone count.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import sparse

from vig_ray.selection.within import Codes, Keyed, codes_of, first_answers, mixed
from vig_ray.tables.order import hashes
from vig_ray.tables.scan import Files

LOOKED_AT = 200_000
"""Scored samples that are looked at, drawn by their keys where there are more."""
FILES = 256
"""Files of scores that are looked at, spread evenly over all where there are more."""
LEAST = 50
"""Samples of a group whose answers are compared; smaller groups are taken together by source."""
RARE = 5
"""Answers that are there less often in a group count as one, and tokens not at all."""
OPEN = 0.2
"""Share of rare answers above which a group's tokens are compared, not its answers."""
READ = 32
"""Tokens of an answer that tell it from others."""
MOVED = 5
"""Samples that an answer has to gain or lose to be named."""
SHIFTED = 0.005
"""The share of its group's answers that it has to gain or lose as well: 0.0 % before and after says nothing."""
DRAWS = 200
"""Random selections that the excess is over."""
_AT_ONCE = 20  # of them, as so many columns of a matrix
WARN = 0.06
"""The tilt above which a person is warned. docs/trust.md says how it was set: models that see tilted by less."""

Counts = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """Scored samples, N of them. `kept` [N, shares]; the others [N]. `kinds`: a code of each question's kind, 0 where
    questions aren't known. `ids`: the different tokens of each one's first answer, end to end, `different` [N] of them.
    """

    keys: npt.NDArray[np.object_]
    sources: npt.NDArray[np.object_]
    kinds: Codes
    answers: Codes
    tokens: Counts
    kept: npt.NDArray[np.bool_]
    different: Counts
    ids: Counts


@dataclass(frozen=True)
class Look:
    """A block of scores to its `Rows`: the scored ones whose key's hash is `limit` at most.

    `kept_of` gives which rows each share keeps, and which are scored.
    """

    kept_of: Any
    keyed: Keyed | None
    seed: int
    limit: int

    def __call__(self, table: pa.Table) -> Rows:
        """The rows of one block."""
        key_hashes = hashes(table["sample_key"], self.seed)
        scored, kept = self.kept_of(table)
        chosen = scored & (key_hashes <= np.uint64(self.limit))
        table, kept, key_hashes = table.filter(pa.array(chosen)), kept[chosen], key_hashes[chosen]
        ids, starts, answered = first_answers(table["token_ids"], table["turn"])
        read = np.minimum(answered, READ)
        row = np.repeat(np.arange(len(kept)), read)
        place = np.arange(len(row)) - np.repeat(np.cumsum(read) - read, read)
        pairs, _ = _pairs(row, ids[starts[row] + place])
        return Rows(
            table["sample_key"].to_numpy(zero_copy_only=False),
            pc.fill_null(table["source"], "").to_numpy(zero_copy_only=False),
            np.zeros(len(kept), np.uint64) if self.keyed is None else self.keyed.of(key_hashes),
            codes_of(ids, starts, read, answered.astype(np.uint64), READ),
            pc.fill_null(table["num_answer_tokens"], 0).to_numpy(zero_copy_only=False).astype(np.int64),
            kept,
            np.bincount(pairs[0], minlength=len(kept)),
            pairs[1],
        )


COLUMNS = ("num_answer_tokens", "sample_key", "source", "token_ids", "turn")


def looked_at(files: Files) -> tuple[Files, int]:
    """The files to look at, and the greatest hash of a key to look at: about `LOOKED_AT` rows of `FILES` files."""
    paths = list(files.paths)
    if len(paths) > FILES:
        paths = [paths[int(place)] for place in np.linspace(0, len(paths) - 1, FILES).round()]
    rows = sum(pq.read_metadata(path, filesystem=files.filesystem).num_rows for path in paths)
    share = min(1.0, LOOKED_AT / max(rows, 1))
    return replace(files, paths=paths), min(int(share * 2**64), 2**64 - 1)


class Shift(NamedTuple):
    """One answer's share of the answers in its group, before and after, and by chance from `low` to `high` (95 %).

    `example`: the key of a sample that has it. `samples`: kept ones that are too many or too few. `token`: of answers
    that differ, the token that they hold; None where the answer as a whole is meant.
    """

    source: str
    example: str
    before: float
    after: float
    low: float
    high: float
    samples: float
    token: int | None = None


class Group(NamedTuple):
    """The answers of one group: how many samples before and after, TV and that of random selections (mean, 97.5 %)."""

    source: str
    example: str
    before: int
    after: int
    variation: float
    by_chance: float
    high: float


@dataclass(frozen=True)
class Tilt:
    """How a selection changes what is answered.

    `answers`: the tilt, mean excess of TV over chance; `low` to `high`: of random selections (95 %). `sources`,
    `questions`, `lengths`: TV of the shares of these; `questions` is None where they aren't known. `groups`: the most
    tilted first, `shifts` likewise, those beyond chance alone. `of`: samples that were looked at; `known`: whether
    kinds of questions are.
    """

    answers: float
    low: float
    high: float
    sources: float
    questions: float | None
    lengths: float
    groups: tuple[Group, ...]
    shifts: tuple[Shift, ...]
    of: int
    known: bool

    def to_json(self) -> dict[str, Any]:
        """As the record holds it."""
        found = {name: getattr(self, name) for name in ("answers", "low", "high", "sources", "questions", "lengths",
                                                         "of", "known")}  # fmt: skip
        return found | {
            "groups": [each._asdict() for each in self.groups],
            "shifts": [each._asdict() for each in self.shifts],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Tilt:
        """From the record."""
        return cls(**{
            **record,
            "groups": tuple(Group(**each) for each in record["groups"]),
            "shifts": tuple(Shift(**each) for each in record["shifts"]),
        })  # fmt: skip


def joined(parts: Iterable[Rows]) -> Rows:
    """The rows of all blocks, in the order of their keys."""
    whole = Rows._make(np.concatenate(each) for each in zip(*parts, strict=True))
    order = np.argsort(whole.keys.astype(str), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    of_ids = np.argsort(np.repeat(place, whole.different), kind="stable")
    return Rows._make([*(each[order] for each in whole[:-1]), whole.ids[of_ids]])


@dataclass(frozen=True)
class _Events:
    """Things that a group's samples may have, an answer or a token, E in all: `group` [E], rising, how many samples had
    each before and after, a row that has it, -1 for rare answers together, and `drawn` [DRAWS, E] of random selections.
    `token` [E]: its id, -1 for answers."""

    group: Counts
    before: Counts
    after: Counts
    row: Counts
    drawn: npt.NDArray[np.integer]
    token: Counts

    def __add__(self, other: _Events) -> _Events:
        mine = (getattr(self, field.name) for field in fields(self))
        theirs = (getattr(other, field.name) for field in fields(self))
        return _Events(*(np.concatenate(both, axis=-1) for both in zip(mine, theirs, strict=True)))


def tilt_of(rows: Rows, share: int, *, known: bool, seed: int, shown: int = 20) -> Tilt | None:
    """The tilt of the `share`-th selection; None where it keeps none or all."""
    kept = rows.kept[:, share]
    if not kept.any() or kept.all():
        return None
    source_names, sources = np.unique(rows.sources.astype(str), return_inverse=True)
    group = _groups(rows, sources)
    groups = int(group.max()) + 1
    sizes, kept_sizes = np.bincount(group, minlength=groups), np.bincount(group[kept], minlength=groups)
    rng = np.random.default_rng(seed)
    answers, is_open = _of_answers(group, rows.answers, kept, kept_sizes, rng)
    tokens = _of_tokens(rows, group, is_open, kept, sizes, kept_sizes, rng)
    variation, by_chance = _variation(answers, sizes, kept_sizes, whole=True)
    most, most_by_chance = _variation(tokens, sizes, kept_sizes, whole=False)
    variation[is_open], by_chance[:, is_open] = most[is_open], most_by_chance[:, is_open]
    expected = by_chance.mean(0)
    weight = kept_sizes / kept_sizes.sum()
    excess = (by_chance - expected) @ weight
    first = np.zeros(groups, np.int64)
    first[group[::-1]] = np.arange(len(group))[::-1]
    told = [
        Group(
            str(source_names[sources[first[each]]]), str(rows.keys[first[each]]), int(sizes[each]),
            int(kept_sizes[each]), float(variation[each]), float(expected[each]),
            float(np.quantile(by_chance[:, each], 0.975)),
        )
        for each in np.argsort(-(variation - expected) * kept_sizes, kind="stable")[:shown]
    ]  # fmt: skip
    return Tilt(
        float((variation - expected) @ weight),
        float(np.quantile(excess, 0.025)),
        float(np.quantile(excess, 0.975)),
        _shares(sources, kept),
        _shares(np.unique(rows.kinds, return_inverse=True)[1], kept) if known else None,
        _shares(np.log2(np.maximum(rows.tokens, 1)).astype(np.int64), kept),
        tuple(told),
        tuple(_shifts(_some(answers, ~is_open[answers.group]) + tokens, rows, sizes, kept_sizes, shown)),
        len(kept),
        known,
    )


def _some(events: _Events, chosen: npt.NDArray[np.bool_]) -> _Events:
    return _Events(*(getattr(events, field.name)[..., chosen] for field in fields(events)))


def _shifts(events: _Events, rows: Rows, sizes: Counts, kept: Counts, shown: int) -> Iterator[Shift]:
    """The greatest shifts by kept samples, those beyond chance alone, of `MOVED` samples and `SHIFTED` of the answers
    at least, and none of rare answers; of each group one, since where an answer gains others lose."""
    share_before = events.before / sizes[events.group]
    of = np.maximum(kept, 1)[events.group]
    moved = (events.after / of - share_before) * kept[events.group]
    told = np.zeros(len(sizes), np.bool_)
    for each in np.argsort(-np.abs(moved), kind="stable"):
        low, high = (float(value) for value in np.quantile(events.drawn[:, each], (0.025, 0.975)) / of[each])
        after, group = float(events.after[each] / of[each]), events.group[each]
        row = int(events.row[each])
        if abs(moved[each]) < MOVED:
            return
        if low <= after <= high or abs(after - share_before[each]) < SHIFTED or told[group] or row < 0:
            continue
        told[group] = True
        yield Shift(
            str(rows.sources[row]), str(rows.keys[row]), float(share_before[each]), after, low, high,
            float(moved[each]), None if events.token[each] < 0 else int(events.token[each]),
        )  # fmt: skip
        if told.sum() == shown:
            return


def _groups(rows: Rows, sources: Counts) -> Counts:
    """The number of each row's group, int64 [N]: of source and kind, and those of few rows by source alone."""
    _, group, sizes = np.unique(mixed(sources.astype(np.uint64), rows.kinds), return_inverse=True, return_counts=True)
    alone = group + len(rows.sources)  # apart from the numbers of sources
    found = np.where(sizes[group] < LEAST, sources, alone)
    numbers: Counts = np.unique(found, return_inverse=True)[1]
    return numbers


def _of_answers(
    group: Counts, codes: Codes, kept: npt.NDArray[np.bool_], kept_sizes: Counts, rng: np.random.Generator
) -> tuple[_Events, npt.NDArray[np.bool_]]:
    """Whole answers, the rare ones of a group as one; and which groups are open, [groups]: many of their answers are
    rare."""
    by_group = mixed(group.astype(np.uint64), codes)
    _, first, number, counts = np.unique(by_group, return_index=True, return_inverse=True, return_counts=True)
    rare = counts < RARE
    # Sorted by group, then as they come; the rare ones of a group are its last.
    keys = np.stack([group[first], rare, np.where(rare, 0, np.arange(len(first)))])
    places, renumbered = np.unique(keys, axis=1, return_inverse=True)
    row = np.full(places.shape[1], -1)
    row[renumbered[~rare]] = first[~rare]
    answer, of_group = renumbered[number], places[0]
    before = np.bincount(answer, minlength=len(of_group))
    after = np.bincount(answer[kept], minlength=len(of_group))
    drawn = np.zeros((DRAWS, len(before)), np.int32)
    starts = np.searchsorted(of_group, np.arange(len(kept_sizes) + 1))
    for place, (start, end) in enumerate(itertools.pairwise(starts)):
        drawn[:, start:end] = rng.multivariate_hypergeometric(
            before[start:end], int(kept_sizes[place]), size=DRAWS, method="marginals"
        )
    of_rare = np.bincount(group, rare[number], len(kept_sizes)) / np.bincount(group, minlength=len(kept_sizes))
    return _Events(of_group, before, after, row, drawn, np.full(len(before), -1)), of_rare > OPEN


def _of_tokens(
    rows: Rows, group: Counts, is_open: npt.NDArray[np.bool_], kept: npt.NDArray[np.bool_], sizes: Counts,
    kept_sizes: Counts, rng: np.random.Generator,
) -> _Events:  # fmt: skip
    """The tokens of answers in open groups, and of random selections those of the rows that they draw: tokens go with
    one another."""
    of_row = np.repeat(np.arange(len(group)), rows.different)
    chosen = is_open[group[of_row]]
    of_row, ids = of_row[chosen], rows.ids[chosen]
    pairs, number = _pairs(group[of_row], ids)
    before = np.bincount(number, minlength=pairs.shape[1])
    often = (before >= RARE) & (sizes[pairs[0]] - before >= RARE)
    renumbered = np.cumsum(often) - 1
    some = often[number]
    of_row, number = of_row[some], renumbered[number[some]]
    of_group, before, token = pairs[0][often], before[often], pairs[1][often]
    events = len(before)
    after = np.bincount(number[kept[of_row]], minlength=events)
    first = np.empty(events, np.int64)
    first[number[::-1]] = of_row[::-1]
    holds = sparse.csr_array((np.ones(len(number), np.int32), (number, of_row)), shape=(events, len(group)))
    members = [np.flatnonzero(group == each) for each in np.flatnonzero(is_open)]
    drawn = np.empty((DRAWS, events), np.int32)
    for start in range(0, DRAWS, _AT_ONCE):
        count = min(_AT_ONCE, DRAWS - start)
        random = np.zeros((len(group), count), np.int32)
        for each in members:
            for draw in range(count):
                taken = rng.choice(len(each), int(kept_sizes[group[each[0]]]), replace=False, shuffle=False)
                random[each[taken], draw] = 1
        drawn[start : start + count] = (holds @ random).T
    return _Events(of_group, before, after, first, drawn, token)


def _pairs(one: Counts, other: Counts) -> tuple[Counts, Counts]:
    """The different pairs of two arrays [N], rising, int64 [2, P], and which one each is, int64 [N]. Numbers from 0 to
    2**31: as one number each they are sorted in a fraction of the time that np.unique takes along an axis."""
    found, number = np.unique(one.astype(np.int64) << 32 | other.astype(np.int64), return_inverse=True)
    return np.stack([found >> 32, found & (2**32 - 1)]), number


def _variation(
    events: _Events, sizes: Counts, kept: Counts, *, whole: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of each group, [groups], and of each random selection, [DRAWS, groups]: half the sum of the differences of shares
    where the events are a `whole`, the greatest of them where they aren't; 0 where nothing of a group is kept."""

    def of(after: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        apart = np.abs(events.before / sizes[events.group] - after / np.maximum(kept, 1)[events.group])
        found = np.zeros(len(sizes))
        if whole:
            found = np.bincount(events.group, apart, len(sizes)) / 2
        else:
            np.maximum.at(found, events.group, apart)
        return np.where(kept > 0, found, 0.0)

    return of(events.after), np.stack([of(each) for each in events.drawn])


def _shares(codes: Counts, kept: npt.NDArray[np.bool_]) -> float:
    """TV of the shares of some codes, before and after."""
    before, after = np.bincount(codes), np.bincount(codes[kept], minlength=int(codes.max()) + 1)
    return float(np.abs(before / len(codes) - after / kept.sum()).sum() / 2)
