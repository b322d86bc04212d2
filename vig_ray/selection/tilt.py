"""Does a selection tilt? Answers to the same kind of question before and after, against a selection by chance.

A group is the samples of one source with one kind of question (its first two words). Within it the shares of answers
are compared before and after: TV, their total variation, is the share of the kept samples that would need another
answer for the shares to be what they were. A random selection has some of it, too, the more the fewer are kept: the
same number is drawn from each group many times, and the excess over the mean of that is what the tilt is. Over all
groups it is the mean by kept samples.

Leaving out sources or kinds of questions that need no image is what a selection is for, and no tilt: it is told, too,
but answers alone count.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vig_ray.selection.within import Codes, Keyed, answer_codes, mixed
from vig_ray.tables.order import hashes
from vig_ray.tables.scan import Files

LOOKED_AT = 1_000_000
"""Scored samples that are looked at, drawn by their keys where there are more."""
FILES = 256
"""Files of scores that are looked at, spread evenly over all where there are more."""
LEAST = 50
"""Samples of a group whose answers are compared; smaller groups are taken together by source."""
RARE = 5
"""Answers that are there less often in a group count as one."""
DRAWS = 200
"""Random selections that the excess is over."""
WARN = 0.1
"""The tilt above which a person is warned: one kept sample in ten would need another answer. docs/trust.md says which
tilts did harm."""

Counts = npt.NDArray[np.int64]
Strings = npt.NDArray[np.str_]


class Rows(NamedTuple):
    """Scored samples, N of them. `kept` [N, shares]; the others [N]. `kinds`: a code of each question's kind, 0 where
    questions aren't known."""

    keys: npt.NDArray[np.object_]
    sources: npt.NDArray[np.object_]
    kinds: Codes
    answers: Codes
    tokens: Counts
    kept: npt.NDArray[np.bool_]


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
        return Rows(
            table["sample_key"].to_numpy(zero_copy_only=False),
            pc.fill_null(table["source"], "").to_numpy(zero_copy_only=False),
            np.zeros(len(kept), np.uint64) if self.keyed is None else self.keyed.of(key_hashes),
            answer_codes(table["token_ids"], table["turn"]),
            pc.fill_null(table["num_answer_tokens"], 0).to_numpy(zero_copy_only=False).astype(np.int64),
            kept,
        )


COLUMNS = ("num_answer_tokens", "sample_key", "source", "token_ids", "turn")


def looked_at(files: Files) -> tuple[Files, int]:
    """The files to look at, and the greatest hash of a key to look at: about `LOOKED_AT` rows of `FILES` files."""
    paths = list(files.paths)
    if len(paths) > FILES:
        paths = [paths[int(place)] for place in np.linspace(0, len(paths) - 1, FILES).round()]
    rows = sum(pq.read_metadata(path, filesystem=files.filesystem).num_rows for path in paths)
    share = min(1.0, LOOKED_AT / max(rows, 1))
    return Files(paths, files.filesystem, files.on_ray, files.view, files.beside), min(int(share * 2**64), 2**64 - 1)


class Shift(NamedTuple):
    """One answer's share of the answers in its group, before and after, and by chance from `low` to `high` (95 %).

    `example`: the key of a sample that has it, None for answers that are rare. `samples`: kept ones that are too many
    or too few.
    """

    source: str
    example: str | None
    before: float
    after: float
    low: float
    high: float
    samples: float

    @property
    def chance(self) -> bool:
        """Whether a random selection does as much."""
        return self.low <= self.after <= self.high


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
    every = [*parts]
    whole = Rows(*(np.concatenate(each) for each in zip(*every, strict=True)))
    order = np.argsort(whole.keys.astype(str), kind="stable")
    return Rows(*(each[order] for each in whole))


def tilt_of(rows: Rows, share: int, *, known: bool, seed: int, shown: int = 20) -> Tilt | None:
    """The tilt of the `share`-th selection; None where it keeps none or all."""
    kept = rows.kept[:, share]
    if not kept.any() or kept.all():
        return None
    source_names, sources = np.unique(rows.sources.astype(str), return_inverse=True)
    group = _groups(rows, sources)
    answer, answer_group, first = _answers(group, rows.answers)
    before = np.bincount(answer, minlength=len(answer_group))
    after = np.bincount(answer[kept], minlength=len(answer_group))
    groups = int(group.max()) + 1
    sizes, kept_sizes = (np.bincount(answer_group, counts, groups).astype(np.int64) for counts in (before, after))
    rng = np.random.default_rng(seed)
    drawn = np.zeros((DRAWS, len(before)), np.int64)
    starts = np.searchsorted(answer_group, np.arange(groups + 1))
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        drawn[:, start:end] = rng.multivariate_hypergeometric(
            before[start:end], int(kept_sizes[number]), size=DRAWS, method="marginals"
        )
    variation = _variation(before, after, answer_group, sizes, kept_sizes)
    by_chance = np.stack([_variation(before, each, answer_group, sizes, kept_sizes) for each in drawn])
    expected = by_chance.mean(0)
    weight = kept_sizes / kept_sizes.sum()
    excess = (by_chance - expected) @ weight
    share_before = before / sizes[answer_group]
    share_after = after / np.maximum(kept_sizes, 1)[answer_group]
    low, high = (np.quantile(drawn, each, axis=0) / np.maximum(kept_sizes, 1)[answer_group] for each in (0.025, 0.975))
    moved = (share_after - share_before) * kept_sizes[answer_group]
    example = [None if row < 0 else str(rows.keys[row]) for row in first]
    of_group = np.zeros(groups, np.int64)
    of_group[group[::-1]] = np.arange(len(group))[::-1]
    shifts = [
        Shift(
            str(source_names[sources[of_group[answer_group[each]]]]), example[each], float(share_before[each]),
            float(share_after[each]), float(low[each]), float(high[each]), float(moved[each]),
        )
        for each in np.argsort(-np.abs(moved), kind="stable")[:shown]
    ]  # fmt: skip
    told = [
        Group(
            str(source_names[sources[of_group[each]]]), str(rows.keys[of_group[each]]), int(sizes[each]),
            int(kept_sizes[each]), float(variation[each]), float(expected[each]),
            float(np.quantile(by_chance[:, each], 0.975)),
        )
        for each in np.argsort(-(variation - expected) * kept_sizes, kind="stable")[:shown]
    ]  # fmt: skip
    return Tilt(
        float((variation - expected) @ weight),
        *(float(np.quantile(excess, each)) for each in (0.025, 0.975)),
        _shares(sources, kept),
        _shares(np.unique(rows.kinds, return_inverse=True)[1], kept) if known else None,
        _shares(np.log2(np.maximum(rows.tokens, 1)).astype(np.int64), kept),
        tuple(told),
        tuple(each for each in shifts if not each.chance),
        len(kept),
        known,
    )


def _groups(rows: Rows, sources: Counts) -> Counts:
    """The number of each row's group, int64 [N]: of source and kind, and those of few rows by source alone."""
    _, group, sizes = np.unique(mixed(sources.astype(np.uint64), rows.kinds), return_inverse=True, return_counts=True)
    alone = group + len(rows.sources)  # apart from the numbers of sources
    found = np.where(sizes[group] < LEAST, sources, alone)
    numbers: Counts = np.unique(found, return_inverse=True)[1]
    return numbers


def _answers(group: Counts, codes: Codes) -> tuple[Counts, Counts, Counts]:
    """The number of each row's answer [N], rising by group; the group of each answer, and a row that has it, -1 for
    the rare ones of a group together."""
    by_group = mixed(group.astype(np.uint64), codes)
    _, first, number, counts = np.unique(by_group, return_index=True, return_inverse=True, return_counts=True)
    rare = counts < RARE
    # Sorted by group, then as they come; the rare ones of a group are its last.
    keys = np.stack([group[first], rare, np.where(rare, 0, np.arange(len(first)))])
    places, renumbered = np.unique(keys, axis=1, return_inverse=True)
    row = np.full(places.shape[1], -1)
    row[renumbered[~rare]] = first[~rare]
    return renumbered[number], places[0], row


def _variation(before: Counts, after: Counts, group: Counts, sizes: Counts, kept: Counts) -> npt.NDArray[np.float64]:
    """Half the sum of the differences of shares, of each group; 0 where nothing of it is kept."""
    apart = np.abs(before / sizes[group] - after / np.maximum(kept, 1)[group])
    found = np.bincount(group, apart, len(sizes)) / 2
    return np.where(kept > 0, found, 0.0)


def _shares(codes: Counts, kept: npt.NDArray[np.bool_]) -> float:
    """TV of the shares of some codes, before and after."""
    before, after = np.bincount(codes), np.bincount(codes[kept], minlength=int(codes.max()) + 1)
    return float(np.abs(before / len(codes) - after / kept.sum()).sum() / 2)


def in_words(tilt: Tilt, of: Mapping[str, tuple[str, str]], most: int = 3) -> list[str]:
    """What a person should know of it. `of`: question and answer of the examples, as far as they are known."""
    told = f"tilt of answers: {100 * tilt.answers:.1f} % of the kept samples would need another answer"
    lines = [f"{told} (by chance {100 * tilt.low:+.1f} to {100 * tilt.high:+.1f} %)"]
    lines += [f"  {_shift(each, of)}" for each in tilt.shifts[:most]]
    if tilt.answers > WARN:
        lines.append(
            f"WARNING: above {100 * WARN:.0f} % a selection changes what is answered; training on it may do harm where "
            "the model doesn't see what is asked. `vig audit` tells where; --within and --calibrate tilt less "
            "(docs/trust.md)"
        )
    return lines


def _shift(shift: Shift, of: Mapping[str, tuple[str, str]]) -> str:
    shares = f"{100 * shift.before:.1f} % of answers before, {100 * shift.after:.1f} % after"
    source = f" in {shift.source}" if shift.source else ""
    if shift.example is None:
        return f"rare answers{source}: {shares}"
    question, answer = of.get(shift.example, ("", ""))
    what = f'"{answer}" to "{question}"' if question or answer else f"what {shift.example} answers"
    return f"{what}{source}: {shares}"


def examples(tilts: Sequence[Tilt | None], most: int = 3) -> list[str]:
    """The keys of the samples whose questions and answers `in_words` tells."""
    return sorted({each.example for tilt in tilts if tilt for each in tilt.shifts[:most] if each.example})
