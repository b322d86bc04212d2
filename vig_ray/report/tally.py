"""What a block of scores adds to a report: counts and sums, which add up in any order, and the samples to be shown.

Nothing here grows with the dataset, except with what is asked for: tokens of a vocabulary, samples to show and tag.
Gains and losses are in nats; means are taken of float64 sums. A token's place in its turn is counted from 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vig_ray.errors import StageError
from vig_ray.report.colours import NAMES, step_of
from vig_ray.tables.order import hashes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GROUPS = ("misaligned", "redundant", "vision-critical")
"""VisNec's names for samples whose gain is negative, near zero, and positive (section 3.1 of arXiv 2603.01195)."""
LOSS_BINS = 60
"""Bins of the loss on each axis of a density; one more holds what is beyond."""
TOKEN_STEP, SAMPLE_STEP = 0.25, 0.125
"""Widths of those bins in nats, for tokens and for samples: powers of 2, so that bounds are exact."""
RANGES = np.array(
    [*range(1, 9), 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 2049, 4097], dtype=np.int64
)
"""First place, or length, of each range; the last one is open."""
SHOWN = ("highest", "lowest", "nearest", "random")

COLUMNS = [
    "sample_key", "source", "vig", "clean_loss", "reference_loss", "token_ids", "clean_logprobs", "reference_logprobs",
    "turn",
]  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is counted, the same for every block.

    `sources`: those with figures of their own; all others are one. `edges`: between the bins of sample gain, whose
    first and last are open. `near_zero`: gains up to this size are near zero. `thresholds`: ascending, of sample and
    token gain. `gallery_size`: how many samples a group of the gallery shows of all sources, and of each. `tau`: the
    gain whose nearest samples it shows. `tagged`: samples whose key's hash is below this go to the tagger.
    """

    sources: tuple[str | None, ...]
    edges: Floats
    near_zero: float
    thresholds: Floats
    gallery_size: int
    tau: float
    seed: int
    tagged: int = 0

    def source_of(self, table: pa.Table) -> Ints:
        """The number of each row's source; the last number is all others."""
        names = [name for name in self.sources if name is not None]
        index = pc.index_in(table["source"].cast(pa.string()), value_set=pa.array(names, pa.string())).to_numpy(
            zero_copy_only=False
        )
        numbers = np.array([self.sources.index(name) for name in names] + [len(self.sources)], dtype=np.int64)
        number = numbers[np.where(np.isnan(index), len(names), index).astype(np.int64)]
        if None in self.sources:
            number[table["source"].is_null().to_numpy(zero_copy_only=False)] = self.sources.index(None)
        return number


@dataclass
class Moments:
    """Values by category: how many, their sum, and the sum of their squares."""

    count: Ints
    total: Floats
    square: Floats

    @classmethod
    def of(cls, values: Floats, category: Ints, size: int) -> Moments:
        """The moments of values whose categories go from 0 to `size` - 1."""
        return cls(
            np.bincount(category, minlength=size),
            _weighted(category, values, size),
            _weighted(category, values * values, size),
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(_sum(getattr(self, part.name), getattr(other, part.name)) for part in fields(self)))

    @property
    def mean(self) -> Floats:
        """The mean by category, NaN where it has no value."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.total / self.count

    @property
    def half_width(self) -> Floats:
        """Half the width of each mean's normal 95 % interval, values taken as independent; NaN for fewer than two."""
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.maximum(self.square - self.total**2 / self.count, 0) / (self.count - 1)
            half: Floats = np.where(self.count > 1, 1.959963984540054 * np.sqrt(variance / self.count), np.nan)
        return half


@dataclass
class Density:
    """Cells of the loss with the image by the loss without it: how many in each, and the sum of their gains."""

    count: Ints
    gain: Floats

    @classmethod
    def of(cls, clean: Floats, reference: Floats, step: float) -> Density:
        """The density of pairs of losses, in bins of `step` nats."""
        size = LOSS_BINS + 1
        # A log-prob may be above 0 by a rounding error.
        x, y = (np.clip(loss / step, 0, LOSS_BINS).astype(np.int64) for loss in (clean, reference))
        cell = x * size + y
        return cls(np.bincount(cell, minlength=size * size), _weighted(cell, reference - clean, size * size))

    def __add__(self, other: Density) -> Density:
        return Density(self.count + other.count, self.gain + other.gain)


@dataclass
class Candidates:
    """Samples that a group of the gallery may show, the best first."""

    value: Floats
    hash: npt.NDArray[np.uint64]
    key: npt.NDArray[np.object_]

    @classmethod
    def best(cls, value: Floats, key_hash: npt.NDArray[np.uint64], keys: Any, rows: Ints, count: int) -> Candidates:
        """The `count` of these rows with the least value; ties go by the hash of the key."""
        if len(rows) > count:
            rows = rows[value[rows] <= np.partition(value[rows], count - 1)[count - 1]] if count else rows[:0]
        rows = rows[np.lexsort((key_hash[rows], value[rows]))][:count]
        return cls(value[rows], key_hash[rows], keys.take(pa.array(rows)).to_numpy(zero_copy_only=False))

    def merged(self, other: Candidates, count: int) -> Candidates:
        """The `count` best of both."""
        value, key_hash = np.concatenate([self.value, other.value]), np.concatenate([self.hash, other.hash])
        order = np.lexsort((key_hash, value))[:count]
        return Candidates(value[order], key_hash[order], np.concatenate([self.key, other.key])[order])


@dataclass
class Tally:
    """The counts of any number of blocks.

    `gains` [sources + 1, groups, bins]: samples. `kept`, `kept_tokens`, `active`: samples, their tokens and the active
    ones among these, at each threshold.
    """

    gains: Ints
    samples: Density
    tokens: Density
    by_token: Moments
    by_place: Moments
    by_length: Moments
    by_step: Ints
    kept: Ints
    kept_tokens: Ints
    active: Ints
    candidates: dict[tuple[str, int | None], Candidates]
    tagged: list[pa.Table] = field(default_factory=list)


def _weighted(category: Ints, weights: Floats, size: int) -> Floats:
    sums: Floats = np.bincount(category, weights=weights, minlength=size).astype(np.float64, copy=False)
    return sums


def _sum(one: Any, other: Any) -> Any:
    size = max(len(one), len(other))
    return np.pad(one, (0, size - len(one))) + np.pad(other, (0, size - len(other)))


def add_up(parts: Iterable[Tally | None], gallery_size: int) -> Tally | None:
    """All blocks together; None where none has a scored sample."""
    whole: Tally | None = None
    for part in parts:
        if whole is None or part is None:
            whole = whole or part
            continue
        for count in fields(Tally):
            so_far, more = getattr(whole, count.name), getattr(part, count.name)
            if count.name == "candidates":
                for name, candidates in more.items():
                    so_far[name] = so_far[name].merged(candidates, gallery_size) if name in so_far else candidates
            else:
                setattr(whole, count.name, so_far + more)
    return whole


def tally(table: pa.Table, plan: Plan) -> Tally | None:
    """Count a block of rows, which have the columns COLUMNS; None where no row has a score."""
    table = table.filter(table["vig"].is_valid()).combine_chunks()
    if not table.num_rows:
        return None
    vig, clean_loss, reference_loss = (
        table[name].to_numpy().astype(np.float64) for name in ("vig", "clean_loss", "reference_loss")
    )
    lengths = pc.list_value_length(table["token_ids"]).to_numpy(zero_copy_only=False).astype(np.int64)
    ids = pc.list_flatten(table["token_ids"]).to_numpy()
    clean, reference = (
        pc.list_flatten(table[name]).to_numpy().astype(np.float64) for name in ("clean_logprobs", "reference_logprobs")
    )
    gain = clean - reference
    source = plan.source_of(table)
    place = places(pc.list_flatten(table["turn"]).to_numpy(), lengths)
    if not (lengths > 0).all() or not len(clean) == len(reference) == len(place) == lengths.sum():
        raise StageError("the scores' lists of tokens and log-probs differ in length, or one is empty; score again")
    # Other hashes than those of selections: what is shown by chance must not depend on what was selected by chance.
    key_hash = hashes(table["sample_key"], f"report {plan.seed}")
    levels = len(plan.thresholds)
    # A sample is kept at every threshold up to its gain, a token active at every one up to its own and its sample's.
    reached = np.searchsorted(plan.thresholds, vig, side="right")
    reached_by_token = np.searchsorted(plan.thresholds, np.minimum(gain, np.repeat(vig, lengths)), side="right")
    return Tally(
        gains=_gains(vig, source, plan),
        samples=Density.of(clean_loss, reference_loss, SAMPLE_STEP),
        tokens=Density.of(-clean, -reference, TOKEN_STEP),
        by_token=Moments.of(gain, ids, 0),
        by_place=Moments.of(gain, np.searchsorted(RANGES, place, side="right") - 1, len(RANGES)),
        by_length=Moments.of(vig, np.searchsorted(RANGES, lengths, side="right") - 1, len(RANGES)),
        by_step=np.bincount(step_of(gain), minlength=len(NAMES)),
        kept=_from_top(np.bincount(reached, minlength=levels + 1)),
        kept_tokens=_from_top(np.bincount(reached, weights=lengths, minlength=levels + 1).astype(np.int64)),
        active=_from_top(np.bincount(reached_by_token, minlength=levels + 1)),
        candidates=_candidates(vig, key_hash, table["sample_key"], source, plan),
        tagged=_tagged(table, key_hash, plan),
    )


def places(turns: npt.NDArray[np.integer[Any]], lengths: Ints) -> Ints:
    """The place of each token in its turn, from 1, int64 [N]. `turns` [N]: of samples of these lengths, end to end."""
    if not len(turns):
        return np.zeros(0, dtype=np.int64)
    begins = np.concatenate([[True], turns[1:] != turns[:-1]])
    begins[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
    number = np.arange(len(turns))
    in_turn: Ints = number - np.maximum.accumulate(np.where(begins, number, 0)) + 1
    return in_turn


def groups_of(vig: Floats, near_zero: float) -> Ints:
    """The number of each gain's group, in the order of GROUPS."""
    group: Ints = np.where(vig > near_zero, 2, np.where(vig < -near_zero, 0, 1))
    return group


def _gains(vig: Floats, source: Ints, plan: Plan) -> Ints:
    shape = (len(plan.sources) + 1, len(GROUPS), len(plan.edges) + 1)
    cell = np.ravel_multi_index(
        (source, groups_of(vig, plan.near_zero), np.searchsorted(plan.edges, vig, side="right")), shape
    )
    return np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape)


def _from_top(counts: Ints) -> Ints:
    """How many reach each threshold; `counts`: how many reach exactly 0, 1, 2 ... of them."""
    reach: Ints = np.cumsum(counts[::-1])[::-1][1:]
    return reach


def _candidates(
    vig: Floats, key_hash: Any, keys: Any, source: Ints, plan: Plan
) -> dict[tuple[str, int | None], Candidates]:
    values = {"highest": -vig, "lowest": vig, "nearest": np.abs(vig - plan.tau), "random": key_hash.astype(np.float64)}
    rows: dict[int | None, Ints] = {None: np.arange(len(vig))}
    rows |= {number: np.flatnonzero(source == number) for number in range(len(plan.sources))}
    return {
        (name, number): Candidates.best(value, key_hash, keys, of_source, plan.gallery_size)
        for name, value in values.items()
        for number, of_source in rows.items()
        if len(of_source)
    }


def _tagged(table: pa.Table, key_hash: Any, plan: Plan) -> list[pa.Table]:
    if not plan.tagged:
        return []
    taken = table.select(["sample_key", "token_ids", "turn", "clean_logprobs", "reference_logprobs"])
    taken = taken.filter(pa.array(key_hash < np.uint64(plan.tagged)))
    return [taken] if taken.num_rows else []
