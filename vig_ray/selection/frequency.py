"""How often each token occurs, for weights by inverse frequency: in the scores' own answers, or in a corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vig_ray.errors import StageError
from vig_ray.storage import read_bytes

_MOST = 1 << 24  # ids; no vocabulary is larger


@dataclass(frozen=True, eq=False)
class TokenCounts:
    """`of_id`, int64 [V]: how often each id occurs; 0 for ids that don't. `source`: where, for a person."""

    of_id: npt.NDArray[np.int64]
    source: str

    @property
    def total(self) -> int:
        """Tokens in all."""
        return int(self.of_id.sum())

    def of(self, ids_N: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """The count of each token, int64 [N]; 1 where it never occurs, as rare as a count can be."""
        known = np.where(ids_N < len(self.of_id), ids_N, 0)
        found = self.of_id[known] if len(self.of_id) else np.zeros(len(ids_N), dtype=np.int64)
        counts: npt.NDArray[np.int64] = np.maximum(np.where(ids_N < len(self.of_id), found, 0), 1)
        return counts

    def fingerprint(self) -> str:
        """A hash of the counts, 16 hex digits."""
        return hashlib.blake2b(self.of_id.tobytes(), digest_size=8).hexdigest()

    def text(self) -> str:
        """For a person."""
        kinds = int(np.count_nonzero(self.of_id))
        return f"token counts: {self.source}, {self.total:,} tokens of {kinds:,} kinds"


def read_counts(path: str) -> TokenCounts:
    """Counts from a text file: on each line a token's id and its count, with spaces or a tab between them.

    Raises StageError naming the line for anything else, and for an id that is there twice.
    """
    try:
        lines = read_bytes(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StageError(f"--counts {path}: can't be read as text") from error
    counts: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
            raise StageError(f"--counts {path}: line {number} isn't a token's id and its count, as in 3 12045")
        token, count = map(int, words)
        if token in counts or token >= _MOST:
            why = "is there twice" if token in counts else "is larger than any vocabulary"
            raise StageError(f"--counts {path}: line {number}: id {token} {why}")
        counts[token] = count
    if not counts:
        raise StageError(f"--counts {path}: holds no counts")
    of_id = np.zeros(max(counts) + 1, dtype=np.int64)
    of_id[list(counts)] = list(counts.values())
    return TokenCounts(of_id, path)


def count_ids(table: pa.Table) -> npt.NDArray[np.int64]:
    """How often each id occurs in a block's `token_ids`, int64."""
    ids: Any = pc.list_flatten(table["token_ids"]).to_numpy(zero_copy_only=False)
    return np.bincount(ids.astype(np.int64)) if len(ids) else np.zeros(0, dtype=np.int64)


def own_counts(parts: Iterable[npt.NDArray[np.int64]]) -> TokenCounts:
    """The counts of all blocks together."""
    whole = np.zeros(0, dtype=np.int64)
    for part in parts:
        size = max(len(whole), len(part))
        whole = np.pad(whole, (0, size - len(whole))) + np.pad(part, (0, size - len(part)))
    return TokenCounts(whole, "the answers that were scored")
