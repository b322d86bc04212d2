"""What `vig measure` wrote, beside the scores that a selection is made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from vig_ray.errors import StageError
from vig_ray.measuring.schema import measures_schema
from vig_ray.selection.strategy import Strategy
from vig_ray.stage import parquet_files, read_stage
from vig_ray.storage import absolute, join
from vig_ray.tables.beside import Beside
from vig_ray.tables.key_index import KeyIndex


@dataclass(frozen=True)
class Measures:
    """A finished measures/ directory and its record."""

    directory: str
    record: dict[str, Any]
    strategy: Strategy

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two measures the same."""
        identity: dict[str, Any] = self.record["identity"]
        return identity

    def beside(self, *, on_ray: bool) -> Beside:
        """Its columns beside those of a scan of the scores."""
        index = KeyIndex.of(self.directory)
        schema = measures_schema(self.record["identity"]["measures"])
        of_strategy = [schema.field(name) for name in self.strategy.measure_columns]
        held: Any = partial(_the_same, index)
        if on_ray:
            import ray

            held = _InStore(ray.put(index))
        return Beside(self.directory, parquet_files(self.directory), pa.schema(of_strategy), held)

    def notes(self, strategy: Strategy) -> Iterator[str]:
        """What a person should know of them."""
        cut = self.record["counts"]["cut"]
        if strategy.measure == "clip-score" and cut:
            yield f"{cut:,} answers have more tokens than CLIP takes; their score is of their beginnings"


def _the_same(index: KeyIndex) -> KeyIndex:
    return index


@dataclass(frozen=True)
class _InStore:
    reference: Any

    def __call__(self) -> KeyIndex:
        import ray

        index: KeyIndex = ray.get(self.reference)
        return index


def measures_for(strategy: Strategy, given: str | None, scores: str, scored: dict[str, Any]) -> Measures:
    """The measures/ at the path given or inside it, by default beside the scores. `scored`: the scores' record.

    Raises StageError where there are none, or they aren't finished, of these samples, or what the strategy needs.
    """
    place = absolute(scores).rpartition("/")[0] if given is None else given
    command = f"`vig measure --scores {scores} --measures {strategy.measure} --out OUT`"
    for directory in (join(place, "measures"), place):
        record = read_stage(directory)
        if record is not None and record["stage"] == "measure":
            break
    else:
        raise StageError(f"{place}: no measures here, which --strategy {strategy.name} needs; {command} makes them")
    if not record["complete"]:
        raise StageError(f"{directory}: not finished; the same `vig measure` command goes on where it was")
    if strategy.measure not in record["identity"]["measures"]:
        raise StageError(f"{directory}: hold no {strategy.measure}; {command} makes it, and --measures OUT says where")
    for name in ("samples", "template"):
        if record["identity"][name] != scored.get("identity", {}).get(name):
            raise StageError(f"{directory}: not of the samples, or not of the tokens, that {scores} are of; {command}")
    return Measures(directory, record, strategy)
