"""Which passes a run makes, and the results of those that an earlier run has made, where it adds references to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from vig_ray.scoring.schema import scores_schema
from vig_ray.tables.key_index import KeyedRows, KeyIndex
from vig_ray.tables.passes import CLEAN, MARGINAL
from vig_ray.tables.rows import Rows


@dataclass(frozen=True)
class Passes:
    """The passes of a run, by their names.

    `held`: those that the rows have of an earlier run, the clean one among them. `to_run`: those that this run makes.
    `images`: how many marginal is of. `earlier`: the rows of the earlier run by their keys, where there is one.
    """

    held: tuple[str, ...]
    to_run: tuple[str, ...]
    images: int = 0
    earlier: Callable[[], KeyedRows] | None = None

    @property
    def slots(self) -> tuple[str, ...]:
        """A name for each prompt of a sample."""
        return slots_of(self.to_run, self.images)

    @property
    def references(self) -> tuple[str, ...]:
        """Those that the rows will have, the run's first one first."""
        return tuple(name for name in (*self.held, *self.to_run) if name != CLEAN)


def slots_of(names: Sequence[str], images: int) -> tuple[str, ...]:
    """A name for each prompt of a sample: marginal has one an image."""
    return tuple(slot for name in names for slot in [name] * (images if name == MARGINAL else 1))


@dataclass(frozen=True)
class StoredRows:
    """Rows by their keys. `index`: their `KeyIndex` in Ray's object store, one copy for all actors of a machine."""

    rows: Rows
    index: Any

    def __call__(self) -> KeyedRows:
        """The rows, in a process of Ray's."""
        return KeyedRows(self.rows, ray.get(self.index))


def stored_rows(scores: str, references: Sequence[str]) -> StoredRows:
    """The rows of scores with these references, for every actor to look up."""
    return StoredRows(Rows(scores, scores_schema(references).names), ray.put(KeyIndex.of(scores)))


def rows_here(scores: str, references: Sequence[str]) -> Callable[[], KeyedRows]:
    """The rows of scores with these references, for this process alone to look up."""
    return partial(KeyedRows, Rows(scores, scores_schema(references).names), KeyIndex.of(scores))
