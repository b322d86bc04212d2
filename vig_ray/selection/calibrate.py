"""`--calibrate`: gains less what another image gains in their place.

Where a model doesn't see what is asked, VIG isn't 0: it leans, by the answer and by the kind of question, since the
reference picture itself looks like something. What one of the dataset's other images gains over the reference shows by
how much: it has nothing to do with the answer, so that all its gain is lean. The mean of it over a group of samples is
the group's null, and a calibrated gain is the gain less the null of its group. So tau means the same in every group.

Of a token it is the mean over all tokens with its id in its group; over all with its id where its group has few of
them; the null of its group where both are few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vig_ray.options import OtherImagesName
from vig_ray.selection.within import Codes, Within, mixed
from vig_ray.tables.gathered import Gathered
from vig_ray.tables.passes import MARGINAL, logprobs_column, loss_column

Floats = npt.NDArray[np.float64]
TOKENS_LEAST = 100
"""How often a token id has to be there for a null of its own."""


class Sums(NamedTuple):
    """Rising codes [N], how many values each has, and their sum."""

    codes: Codes
    counts: npt.NDArray[np.int64]
    sums: Floats

    @classmethod
    def of(cls, codes: Codes, values: Floats) -> Sums:
        """Of a value each."""
        found, place = np.unique(codes, return_inverse=True)
        return cls(found, np.bincount(place, minlength=len(found)), _sums(place, values, len(found)))

    @classmethod
    def merged(cls, parts: Sequence[Sums]) -> Sums:
        """Of all parts together."""
        if not parts:
            return cls.of(*_NONE)
        codes, counts, sums = (np.concatenate(each) for each in zip(*parts, strict=True))
        found, place = np.unique(codes, return_inverse=True)
        return cls(found, _sums(place, counts, len(found)).astype(np.int64), _sums(place, sums, len(found)))

    def means(self, least: int) -> tuple[Codes, Floats]:
        """The codes that have at least so many values, rising, and the mean of each."""
        enough = self.counts >= least
        return self.codes[enough], self.sums[enough] / self.counts[enough]


@dataclass(frozen=True, eq=False)
class Nulls:
    """The null gains, nats, by what they are of: rising codes and a value for each.

    `of`: whose passes with other images they come from. `all`: that of all samples, which those of small groups have.
    `groups`: by group. `in_group`, `of_id`: by token id and group, and by token id; empty where no tokens are weighed.
    """

    within: Within
    of: OtherImagesName
    all: float = 0.0
    groups: tuple[Codes, Floats] = field(default_factory=lambda: _NONE)
    in_group: tuple[Codes, Floats] = field(default_factory=lambda: _NONE)
    of_id: tuple[Codes, Floats] = field(default_factory=lambda: _NONE)

    def columns(self) -> set[str]:
        """Of the scores, which are needed to tell the groups."""
        return self.within.columns()

    def of_samples(self, table: pa.Table, seed: int) -> Floats:
        """The null of each row, float64 [rows]."""
        found = np.full(table.num_rows, self.all)
        _look_up(self.groups, self.within.codes_of(table, seed), found)
        return found

    def of_tokens(self, table: pa.Table, seed: int) -> Floats:
        """The null of each answer token of all rows, end to end, float64 [N]."""
        ids, lengths = _tokens(table["token_ids"])
        found = np.repeat(self.of_samples(table, seed), lengths)
        _look_up(self.of_id, ids, found)
        _look_up(self.in_group, mixed(np.repeat(self.within.codes_of(table, seed), lengths), ids), found)
        return found


_NONE: tuple[Codes, Floats] = (np.zeros(0, np.uint64), np.zeros(0))


def null_columns(reference: str, other: OtherImagesName, *, tokens: bool) -> set[str]:
    """The columns that null gains over a reference are made of."""
    if reference == other == MARGINAL:
        of_tokens = {"token_ids", "marginal_null"}
        return {_losses(other), "num_answer_tokens"} | (of_tokens if tokens else set())
    of_tokens = {"token_ids", "reference_logprobs", _logprobs(other)}
    return {"reference_loss", _losses(other)} | (of_tokens if tokens else set())


@dataclass(frozen=True)
class Summed:
    """A block of scores to the sums of its null gains: by group, by token id and group, and by token id."""

    within: Within
    reference: str
    other: OtherImagesName
    tokens: bool
    seed: int

    def __call__(self, table: pa.Table) -> tuple[Sums, Sums, Sums]:
        """The sums of one block."""
        there = np.ones(table.num_rows, np.bool_)
        for name in null_columns(self.reference, self.other, tokens=self.tokens):
            there &= table[name].is_valid().to_numpy(zero_copy_only=False)
        table, empty = table.filter(pa.array(there)).combine_chunks(), Sums.of(*_NONE)
        if not table.num_rows:
            return empty, empty, empty
        codes = self.within.codes_of(table, self.seed)
        of_groups = Sums.of(codes, self._of_samples(table))
        if not self.tokens:
            return of_groups, empty, empty
        ids, lengths = _tokens(table["token_ids"])
        gains = self._of_tokens(table)
        return of_groups, Sums.of(mixed(np.repeat(codes, lengths), ids), gains), Sums.of(ids, gains)

    def _of_samples(self, table: pa.Table) -> Floats:
        losses = table[_losses(self.other)]
        if self.reference == self.other == MARGINAL:
            tokens = table["num_answer_tokens"].to_numpy().astype(np.float64)
            # Of one of the K images over the others: over all K, itself among them, each would lose a little.
            return np.asarray(null_gains_of(_flat(losses).reshape(table.num_rows, -1), tokens).mean(1), np.float64)
        return np.asarray(table["reference_loss"].to_numpy(), np.float64) - _means(losses)

    def _of_tokens(self, table: pa.Table) -> Floats:
        if self.reference == self.other == MARGINAL:
            return _flat(table["marginal_null"])
        return _flat(table[_logprobs(self.other)]) - _flat(table["reference_logprobs"])


def nulls_of(parts: Iterator[tuple[Sums, Sums, Sums]], within: Within, other: OtherImagesName, least: int) -> Nulls:
    """The nulls from the sums of all blocks. `least`: samples of a group that has one of its own."""
    every = (Gathered(Sums.merged, _size), Gathered(Sums.merged, _size), Gathered(Sums.merged, _size))
    for part in parts:
        for gathered, sums in zip(every, part, strict=True):
            gathered.add(sums)
    samples, in_group, of_id = (gathered.whole() for gathered in every)
    everything = float(samples.sums.sum() / samples.counts.sum()) if len(samples.codes) else 0.0
    return Nulls(
        within, other, everything, samples.means(least), in_group.means(TOKENS_LEAST), of_id.means(TOKENS_LEAST)
    )


def _size(sums: Sums) -> int:
    return len(sums.codes)


def _sums(place: npt.NDArray[np.int64], values: npt.NDArray[Any], size: int) -> Floats:
    return np.asarray(np.bincount(place, values, minlength=size), np.float64)


def _losses(other: OtherImagesName) -> str:
    """The losses with other images: each of the K, or the one."""
    return "marginal_losses" if other == MARGINAL else loss_column(other)


def _logprobs(other: OtherImagesName) -> str:
    """The tokens' log-probs with other images: their mean over the K, as the losses' mean has it, or those of the one.
    `marginal_logprobs` is the log of a mean, which is above it, and would raise a token's null beyond its sample's."""
    return "marginal_means" if other == MARGINAL else logprobs_column(other)


def _means(losses: Any) -> Floats:
    """Of K losses a row, or of one, the mean: float64 [rows]."""
    if pa.types.is_list(losses.type):
        return np.asarray(_flat(losses).reshape(len(losses), -1).mean(1), np.float64)
    return np.asarray(losses.to_numpy(zero_copy_only=False), np.float64)


def _tokens(token_ids: Any) -> tuple[Codes, npt.NDArray[np.int64]]:
    """The ids end to end, and how many each row has."""
    lengths = pc.fill_null(pc.list_value_length(token_ids), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return _flat(token_ids).astype(np.uint64), lengths


def _flat(lists: Any) -> Floats:
    return np.asarray(pc.list_flatten(lists).to_numpy(zero_copy_only=False), np.float64)


def _look_up(known: tuple[Codes, Floats], codes: Codes, found: Floats) -> None:
    """Put the value of each code that is known in its place of `found`."""
    of_codes, values = known
    if len(of_codes):
        place = np.minimum(np.searchsorted(of_codes, codes), len(of_codes) - 1)
        there = of_codes[place] == codes
        found[there] = values[place[there]]


def null_gains_of(swapped_NK: Floats, tokens_N: Floats) -> Floats:
    """What each of the K images gains over the mean of the others, float64 [N, K]; nothing of K = 1."""
    k = swapped_NK.shape[1]
    if k == 1:
        return np.zeros((len(swapped_NK), 0))
    others = [_marginal(np.delete(swapped_NK, each, axis=1), tokens_N) for each in range(k)]
    return np.stack(others, axis=1) - swapped_NK


def _marginal(swapped_NK: Floats, tokens_N: Floats) -> Floats:
    """-log of the mean over K of the answers' probabilities, by their tokens: `vig_ray.scoring.gain.marginal_loss`."""
    logp = -swapped_NK * tokens_N[:, None]
    most = logp.max(1, keepdims=True)
    found: Floats = -(most[:, 0] + np.log(np.exp(logp - most).mean(1))) / tokens_N
    return found
