"""Where the rows of each position lie: `selection/` and `samples/` brought together without moving either.

A key is 64 bits of hash here, so the index costs 16 bytes a selected sample, whatever the samples are; whoever reads a
row compares the keys themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vig_ray.errors import StageError
from vig_ray.stage import parquet_files
from vig_ray.storage import filesystem
from vig_ray.tables.order import Hashes, hashes
from vig_ray.training.rows import Places, places

_NOWHERE = np.uint64(np.iinfo(np.uint64).max)


@dataclass(frozen=True, eq=False)
class Index:
    """`sample_at`, `selection_at`: the place of each position's row, uint64 [N]; `selection_at` is None without a
    selection, where every sample is trained on. `left_out`: rows of samples/ that can't be (they have an `error`).
    """

    sample_at: Places
    selection_at: Places | None
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.sample_at)


def of_selection(samples: str, selection: str) -> Index:
    """The index of a selection. Raises StageError where a position is missing or taken twice, or a key isn't in
    `samples`."""
    keys, at, positions = [], [], []
    for where, table in _scan(selection, ["sample_key", "position"]):
        keys.append(hashes(table["sample_key"], 0))
        positions.append(table["position"].to_numpy())
        at.append(where)
    if not keys:
        raise StageError(f"{selection}: no sample is selected, so there is nothing to train on")
    of_key, place, position = np.concatenate(keys), np.concatenate(at), np.concatenate(positions)
    count = len(of_key)
    selection_at = np.full(count, _NOWHERE)
    if position.min() < 0 or position.max() >= count:
        raise StageError(f"{selection}: {count:,} rows, but positions from {position.min():,} to {position.max():,}")
    selection_at[position] = place
    if (selection_at == _NOWHERE).any():
        raise StageError(f"{selection}: position {int(np.argmax(selection_at == _NOWHERE)):,} is missing; select again")
    order = np.argsort(of_key)
    sorted_keys, position_of = of_key[order], position[order]
    if (sorted_keys[1:] == sorted_keys[:-1]).any():
        raise StageError(f"{selection}: a sample key occurs twice; select again")
    sample_at = np.full(count, _NOWHERE)
    for where, table in _scan(samples, ["sample_key"]):
        own = hashes(table["sample_key"], 0)
        nearest = np.minimum(np.searchsorted(sorted_keys, own), count - 1)
        found = sorted_keys[nearest] == own
        sample_at[position_of[nearest[found]]] = where[found]
    absent = np.flatnonzero(sample_at == _NOWHERE)
    if len(absent):
        from vig_ray.training.rows import Rows

        key = Rows(selection, ["sample_key"]).get(selection_at[absent[:1]])[0]["sample_key"]
        raise StageError(
            f"{samples}: lacks {len(absent):,} of the {count:,} selected samples, {key!r} among them; "
            "--samples takes those that the selection was made from"
        )
    return Index(sample_at, selection_at)


def of_samples(samples: str, seed: int) -> Index:
    """The index of every sample without an `error`, in an order that the seed and the keys decide."""
    keys, at, left_out = [], [], 0
    for where, table in _scan(samples, ["sample_key", "error"]):
        usable = pc.is_null(table["error"]).to_numpy(zero_copy_only=False)
        left_out += int((~usable).sum())
        keys.append(hashes(table["sample_key"].filter(pa.array(usable)), seed))
        at.append(where[usable])
    of_key: Hashes = np.concatenate([np.zeros(0, np.uint64), *keys])
    if not len(of_key):
        raise StageError(f"{samples}: no sample to train on")
    order: npt.NDArray[Any] = np.argsort(of_key, kind="stable")
    return Index(np.concatenate(at)[order], None, left_out)


def _scan(directory: str, columns: list[str]) -> Iterator[tuple[Places, pa.Table]]:
    """Every row group's places and columns, a few files at a time. Raises StageError where a column is missing."""
    fs, _ = filesystem(directory)
    paths = parquet_files(directory)
    if not paths:
        raise StageError(f"{directory}: no Parquet files")

    def read(number: int) -> list[tuple[Places, pa.Table]]:
        with pq.ParquetFile(paths[number], filesystem=fs) as file:
            missing = sorted(set(columns) - set(file.schema_arrow.names))
            if missing:
                raise StageError(f"{paths[number]}: has no column {missing[0]!r}")
            found, first = [], 0
            for group in range(file.metadata.num_row_groups):
                table = file.read_row_group(group, columns=columns)
                found.append((places(number, first, table.num_rows), table))
                first += table.num_rows
            return found

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for group in pool.map(read, range(len(paths))):
            yield from group
