"""Which rows of the data become samples: all, the first so many, a share of them, or a mixture of datasets by weights.

A row is taken by a hash of its key and a seed, so the same rows are taken on any machine, in any order and however
often, and those of a smaller share are among those of a larger one.

A mixture has the proportions of `datasets.interleave_datasets(..., probabilities, stopping_strategy=
"first_exhausted")`: of n_i rows with weight w_i, N w_i are taken, where N = min_i n_i / w_i (weights that sum to 1).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vig_ray.dataset.inputs import DataFile
from vig_ray.errors import StageError

SAMPLE, WEIGHTS = "--sample", "weights"
"""What rows are left out by."""


@dataclass(frozen=True)
class Taking:
    """`sample`: share of rows that are taken, 0 to 1. `shares`: of each dataset, by weights, 0 to 1; () without any."""

    sample: float
    seed: int
    shares: tuple[float, ...] = ()

    @property
    def all(self) -> bool:
        """Whether no row is left out."""
        return self.sample == 1 and not self.shares


class Taker:
    """Says of the rows of one file which are taken, and counts the others.

    After `most` no more is counted, and one more is given, whichever it is, to show that there is one.
    """

    def __init__(self, taking: Taking, file: DataFile, most: int | None = None) -> None:
        self._file, self._seed, self._left = file, taking.seed, most
        self._sample = taking.sample
        self._both = taking.sample * (taking.shares[file.dataset] if taking.shares else 1)
        self.left_out: Counter[str] = Counter()

    def __call__(self, number: int) -> bool:
        """Whether the row of this number is taken."""
        if self._left is not None and self._left <= 0:
            self._left -= 1
            return self._left == -1
        place = place_of(self._file.sample_key(number), self._seed)
        if place < self._both:
            self._left = None if self._left is None else self._left - 1
            return True
        self.left_out[WEIGHTS if place < self._sample else SAMPLE] += 1
        return False


def place_of(key: str, seed: int) -> float:
    """A number from 0 to 1, without 1, that a key has by chance; another with another seed."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, salt=seed.to_bytes(8, "little"))
    return (int.from_bytes(digest.digest(), "little") >> 11) / 2.0**53


def shares_of(rows: Sequence[int], weights: Sequence[float], names: Sequence[str]) -> tuple[float, ...]:
    """What share of each dataset's rows is taken, 0 to 1. Raises StageError where one has no rows."""
    empty = next((name for name, count in zip(names, rows, strict=True) if not count), None)
    if empty is not None:
        raise StageError(f"{empty}: no rows")
    least = min(count / weight for count, weight in zip(rows, weights, strict=True))
    return tuple(min(1.0, weight * least / count) for count, weight in zip(rows, weights, strict=True))
