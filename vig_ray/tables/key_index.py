"""Where the row of each key lies, by 64 bits of hash: 16 bytes a row, whatever the rows are.

Where several keys have one hash, the keys themselves are looked at, and whoever reads a row compares the keys once
more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from vig_ray.errors import StageError
from vig_ray.tables.order import Hashes, among, few_at_a_time, hashes, shared
from vig_ray.tables.rows import Places, Rows, scan


def by_key(directory: str, columns: list[str], wanted: Hashes, seed: int = 0) -> dict[str, tuple[int, dict[str, Any]]]:
    """The place and the columns of every row whose key has one of these hashes, by that key.

    Raises StageError where two rows have the same key.
    """
    rows: dict[str, tuple[int, dict[str, Any]]] = {}
    for where, table in scan(directory, ["sample_key", *columns]):
        numbers = among(hashes(table["sample_key"], seed), wanted)
        for place, row in zip(where[numbers].tolist(), table.take(pa.array(numbers)).to_pylist(), strict=True):
            key = row["sample_key"]
            if key in rows:
                raise StageError(f"{directory}: sample key {key!r} occurs twice; make this directory again")
            rows[key] = place, row
    return rows


@dataclass(frozen=True, eq=False)
class KeyIndex:
    """`ascending` uint64 [N]: the sorted hashes of a directory's keys. `at` [N]: the place of each one's row.

    `ties`: by key, the places of those whose hash is another key's too.
    """

    ascending: Hashes
    at: Places
    ties: dict[str, int]

    @classmethod
    def of(cls, directory: str) -> KeyIndex:
        """The index of a directory. Raises StageError where a key is there twice."""
        keys, places = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.uint64)]
        for where, table in scan(directory, ["sample_key"]):
            keys.append(hashes(table["sample_key"], 0))
            places.append(where)
        of_key, at = np.concatenate(keys), np.concatenate(places)
        order = np.argsort(of_key)
        ascending = of_key[order]
        ties: dict[str, int] = {}
        for wanted in few_at_a_time(shared(ascending)):
            ties |= {key: place for key, (place, _) in by_key(directory, [], wanted).items()}
        return cls(ascending, at[order], ties)

    def places(self, keys: pa.ChunkedArray | pa.Array) -> Places:
        """The place of each key's row; any where the key isn't there, which its row's own key tells."""
        nearest = np.minimum(np.searchsorted(self.ascending, hashes(keys, 0)), len(self.ascending) - 1)
        places: Places = self.at[nearest]
        if self.ties:
            for number, key in enumerate(keys.to_pylist()):
                places[number] = self.ties.get(key, places[number])
        return places


@dataclass(frozen=True)
class KeyedRows:
    """The rows of a directory by their keys."""

    rows: Rows
    index: KeyIndex

    def of(self, keys: pa.ChunkedArray | pa.Array) -> list[dict[str, Any]]:
        """The rows of these keys, in their order. Raises StageError where one isn't there."""
        found = self.rows.get(self.index.places(keys))
        for key, row in zip(keys.to_pylist(), found, strict=True):
            if row["sample_key"] != key:
                raise StageError(f"{self.rows.directory}: holds no row of sample {key!r}; choose another --out")
        return found
