"""Where the rows of each position lie: `selection/` and `samples/` brought together without moving either.

A key is 64 bits of hash here, so the index costs 16 bytes a selected sample, whatever the samples are; where several
keys have one hash, the keys themselves are looked at. Whoever reads a row compares the keys once more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vig_ray.errors import StageError
from vig_ray.tables.key_index import by_key
from vig_ray.tables.order import Hashes, few_at_a_time, hashes, shared
from vig_ray.tables.rows import Places, Rows, scan

_NOWHERE = np.uint64(np.iinfo(np.uint64).max)
Taken = Callable[[pa.ChunkedArray | pa.Array], npt.NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Index:
    """`sample_at`, `selection_at`: the place of each position's row, uint64 [N]; `selection_at` is None without a
    selection, where every sample is trained on. `left_out`: rows of samples/ that can't be (they have an `error`);
    `untaken`: others that aren't, since they weren't drawn.
    """

    sample_at: Places
    selection_at: Places | None
    left_out: int = 0
    untaken: int = 0

    def __len__(self) -> int:
        return len(self.sample_at)


def of_selection(samples: str, selection: str) -> Index:
    """The index of a selection. Raises StageError where a position is missing or taken twice, a key is there twice, or
    isn't in `samples`."""
    keys, at, positions = [], [], []
    for where, table in scan(selection, ["sample_key", "position"]):
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
    ascending, position_of = of_key[order], position[order]
    sample_at = np.full(count, _NOWHERE)
    ambiguous = [shared(ascending)]
    for where, table in scan(samples, ["sample_key"]):
        of_rows = hashes(table["sample_key"], 0)
        nearest = np.minimum(np.searchsorted(ascending, of_rows), count - 1)
        selected = ascending[nearest] == of_rows
        theirs, where = position_of[nearest[selected]], where[selected]
        taken = sample_at[theirs] != _NOWHERE  # by an earlier row
        sample_at[theirs] = where
        taken |= sample_at[theirs] != where  # by a later row of this table
        ambiguous.append(of_rows[selected][taken])
    _settle_by_key(samples, selection, np.unique(np.concatenate(ambiguous)), sample_at)
    absent = np.flatnonzero(sample_at == _NOWHERE)
    if len(absent):
        key = Rows(selection, ["sample_key"]).get(selection_at[absent[:1]])[0]["sample_key"]
        raise StageError(
            f"{samples}: lacks {len(absent):,} of the {count:,} selected samples, {key!r} among them; "
            "--samples takes those that the selection was made from"
        )
    return Index(sample_at, selection_at)


def _settle_by_key(samples: str, selection: str, ambiguous: Hashes, sample_at: Places) -> None:
    """Set the place of every selected sample whose hash is one of `ambiguous`, those of several keys, by its key.

    Raises StageError where a key is there twice.
    """
    for wanted in few_at_a_time(ambiguous):
        position_of = by_key(selection, ["position"], wanted)
        place_of = by_key(samples, [], wanted)
        for key, (_, row) in position_of.items():
            sample_at[row["position"]] = place_of[key][0] if key in place_of else _NOWHERE


def of_samples(samples: str, seed: int, taken: Taken | None = None) -> Index:
    """The index of every sample without an `error`, in an order that the seed and the keys decide.

    `taken`: which keys are, bool [keys]; by default all. Raises StageError where a key is there twice.
    """
    keys, at, left_out, untaken = [], [], 0, 0
    for where, table in scan(samples, ["sample_key", "error"]):
        usable = pc.is_null(table["error"]).to_numpy(zero_copy_only=False)
        left_out += int((~usable).sum())
        if taken is not None:
            chosen = taken(table["sample_key"])
            untaken += int((usable & ~chosen).sum())
            usable = usable & chosen
        keys.append(hashes(table["sample_key"].filter(pa.array(usable)), seed))
        at.append(where[usable])
    of_key: Hashes = np.concatenate([np.zeros(0, np.uint64), *keys])
    if not len(of_key):
        raise StageError(f"{samples}: no sample to train on")
    order = np.argsort(of_key, kind="stable")
    ascending, sample_at = of_key[order], np.concatenate(at)[order]
    for wanted in few_at_a_time(shared(ascending)):
        rows = by_key(samples, ["error"], wanted, seed)
        usable_keys = sorted(key for key, (_, row) in rows.items() if row["error"] is None)
        if taken is not None:
            usable_keys = pa.array(usable_keys, pa.string()).filter(pa.array(taken(pa.array(usable_keys)))).to_pylist()
        of_usable = hashes(pa.array(usable_keys), seed)
        for value in wanted:
            first = int(np.searchsorted(ascending, value))
            for index, key in enumerate(np.flatnonzero(of_usable == value).tolist(), first):
                sample_at[index] = rows[usable_keys[key]][0]
    return Index(sample_at, None, left_out, untaken)
