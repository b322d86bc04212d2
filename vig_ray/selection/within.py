"""`--within`: samples that are ranked together, those that agree in their source, their answer, their kind of question
or their cluster.

Where a model doesn't see what is asked its gains lean towards some answers, and the best of all samples are then those
answers'. Ranked within each answer they can't displace the others. A group is known by a 64-bit hash of what its
samples agree in; groups of few samples are ranked together as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vig_ray.selection.clusters import cluster_samples, questions_of
from vig_ray.tables.order import hashes
from vig_ray.tables.thresholds import Pairs, gathered

WithinName = Literal["source", "answer", "question", "cluster"]
SHORT = 8
"""The most tokens of an answer that is taken as it is, its end of turn among them; of longer ones the first decides."""
WORDS = 2
"""How many words a question's kind is known by: what color, is there, how many."""

Codes = npt.NDArray[np.uint64]
_LONG, _NONE = np.uint64(2**64 - 1), np.uint64(2**64 - 2)  # no token has these ids


class Keyed(NamedTuple):
    """What the samples tell of each row: rising key hashes [N], and a code for each [N]."""

    keys: Codes
    codes: Codes

    def of(self, key_hashes: Codes) -> Codes:
        """The codes of rows by their key hashes; 0 for those that aren't there, which have no image."""
        nearest = np.minimum(np.searchsorted(self.keys, key_hashes), len(self.keys) - 1)
        return np.where(self.keys[nearest] == key_hashes, self.codes[nearest], np.uint64(0))


@dataclass(frozen=True, eq=False)
class Within:
    """Groups of samples that agree in all of `by`.

    `keyed`: what question and cluster are looked up in. `codes`: rising, of the groups that are ranked by themselves;
    all other samples are group 0 together.
    """

    by: tuple[WithinName, ...]
    keyed: Mapping[WithinName, Keyed] = field(default_factory=dict)
    codes: Codes = field(default_factory=lambda: np.zeros(0, np.uint64))

    @classmethod
    def of_names(cls, by: Sequence[WithinName], keyed: Mapping[WithinName, Keyed]) -> Within:
        """Groups by these names, none of them ranked by itself yet."""
        return cls(tuple(by), {name: keyed[name] for name in by if name in keyed})

    def __len__(self) -> int:
        return 1 + len(self.codes)

    def columns(self) -> set[str]:
        """Of the scores, which are needed to tell the groups."""
        needed: set[str] = set()
        if "source" in self.by:
            needed.add("source")
        if "answer" in self.by:
            needed |= {"token_ids", "turn"}
        return needed | ({"sample_key"} if self.keyed else set())

    def codes_of(self, table: pa.Table, seed: int) -> Codes:
        """What each row agrees with others in, uint64 [rows]."""
        found = np.zeros(table.num_rows, np.uint64)
        for name in self.by:
            if name == "source":
                of_name = hashes(pc.fill_null(table["source"], ""), 0)
            elif name == "answer":
                of_name = answer_codes(table["token_ids"], table["turn"])
            else:
                of_name = self.keyed[name].of(hashes(table["sample_key"], seed))
            found = mixed(found, of_name)
        return found

    def of(self, table: pa.Table, seed: int) -> npt.NDArray[np.int64]:
        """The number of each row's group, int64 [rows]."""
        codes = self.codes_of(table, seed)
        if not len(self.codes):
            return np.zeros(len(codes), np.int64)
        place = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where(self.codes[place] == codes, 1 + place, 0).astype(np.int64)

    def ranking(self, sizes: Pairs, least: int) -> tuple[Within, npt.NDArray[np.int64]]:
        """The groups of at least so many samples, and how many samples each group has, int64 [groups], the others'
        first. `sizes`: of all."""
        codes, counts = sizes
        large = counts >= least
        return dataclasses.replace(self, codes=codes[large]), np.append(counts[~large].sum(), counts[large])


def keyed_by(
    names: Collection[WithinName], samples: str | None, *, embedding_model: str, clusters: int, seed: int
) -> dict[WithinName, Keyed]:
    """What question and cluster are looked up in, as far as they are among these names.

    Raises StageError where the samples can't be read.
    """
    keyed: dict[WithinName, Keyed] = {}
    if "question" in names:
        assert samples is not None
        keyed["question"] = _joined(
            (key_hashes, hashes(pa.array([kind_of(text) for text in questions]), 0))
            for key_hashes, questions in questions_of(samples, seed)
        )
    if "cluster" in names:
        assert samples is not None
        keys, of_key = cluster_samples(samples, embedding_model, clusters=clusters, seed=seed)
        keyed["cluster"] = Keyed(keys, 1 + of_key.astype(np.uint64))
    return keyed


def kind_of(question: str) -> str:
    """The kind of a question: its first words, in small letters and without what ends them."""
    return " ".join(word.strip(".,:;?!\"'()").lower() for word in question.split()[:WORDS])


def sizes_of(parts: Iterator[Codes]) -> Pairs:
    """How many rows have each code, from those of all blocks."""

    def counted(codes: Codes) -> Pairs:
        found, counts = np.unique(codes, return_counts=True)
        return found, counts.astype(np.int64)

    return gathered(counted(part) for part in parts)


def answer_codes(token_ids: pa.ChunkedArray, turn: pa.ChunkedArray) -> Codes:
    """A code of each row's first answer, uint64 [rows]: of all its tokens where they are `SHORT` at most, of the first
    one otherwise."""
    ids, starts, tokens = first_answers(token_ids, turn)
    read = np.where(tokens <= SHORT, tokens, np.minimum(tokens, 1))
    return codes_of(ids, starts, read, np.where(tokens > SHORT, _LONG, _NONE), SHORT)


def codes_of(
    ids: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], read: npt.NDArray[np.int64], begin: Codes, most: int
) -> Codes:
    """A code of each row's first `read` ids, `most` at most, uint64 [rows]; `begin` goes into it."""
    found = begin
    for place in range(most):
        there = read > place
        at = np.full(len(read), _NONE)
        at[there] = ids[starts[there] + place].astype(np.uint64)
        found = mixed(found, at)
    return found


def first_answers(
    token_ids: pa.ChunkedArray, turn: pa.ChunkedArray
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All rows' ids end to end, where each row's begin, and how many of them are its first answer's, [rows] each."""
    ids, lengths = _flat(token_ids)
    turns, _ = _flat(turn)
    starts = np.cumsum(lengths) - lengths
    first_turn = np.zeros(len(lengths), np.int64)
    some = lengths > 0
    first_turn[some] = turns[starts[some]]
    of_first = np.concatenate([[0], np.cumsum(turns == np.repeat(first_turn, lengths))])
    return ids, starts, of_first[starts + lengths] - of_first[starts]


def _flat(lists: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The entries of all rows' lists end to end, and how many each row has; null is none."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(np.int64), lengths


def mixed(codes: Codes, more: Codes) -> Codes:
    """A hash of both, uint64 [rows] (the finaliser of splitmix64)."""
    x = codes * np.uint64(0x9E3779B97F4A7C15) + more
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def _joined(parts: Iterator[tuple[Codes, Codes]]) -> Keyed:
    every = [*parts] or [(np.zeros(1, np.uint64), np.zeros(1, np.uint64))]
    keys, codes = (np.concatenate(each) for each in zip(*every, strict=True))
    order = np.argsort(keys, kind="stable")
    return Keyed(keys[order], codes[order])
