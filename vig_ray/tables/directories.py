"""Which scores/, selection/ or samples/ a user means, and a few of their rows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from vig_ray.dataset.importing import samples_directory
from vig_ray.errors import StageError
from vig_ray.stage import parquet_files, read_stage
from vig_ray.storage import absolute, filesystem, join
from vig_ray.tables.passes import View


def scores_directory(given: str) -> str:
    """The scores/ directory at the path that was given, or inside it. Raises StageError where there is none."""
    for directory in (join(given, "scores"), given):
        record = read_stage(directory)
        if record is not None and record["stage"] == "score":
            return directory
    raise StageError(f"{given}: no scores here; --scores takes what `vig score --out` wrote")


def selection_directory(given: str) -> tuple[str, dict[str, Any]]:
    """The selection/ directory at the path that was given, or inside it, and its record. Raises StageError."""
    for directory in (join(given, "selection"), given):
        record = read_stage(directory)
        if record is not None and record["stage"] == "select":
            if not record["complete"] or len(record["selection"]["kept"]) > 1:
                raise StageError(f"{directory}: nothing is selected here; run vig select with one --p")
            return directory, record
    raise StageError(f"{given}: no selection here; --selection takes what `vig select --out` wrote")


def samples_beside(scores: str, given: str | None, record: dict[str, Any]) -> str | None:
    """The samples/ that the scores are of: at the path given or inside it, by default beside the scores; None without.

    `record`: the scores'. Raises StageError where the samples given aren't those that were scored.
    """
    samples = samples_directory(given or join(absolute(scores).rpartition("/")[0], "samples"))
    if samples is None:
        if given is not None:
            raise StageError(f"{given}: no samples here; --samples takes what `vig import --out` wrote")
        return None
    imported = read_stage(samples) or {}
    expected = record.get("identity", {}).get("samples", {})
    if any(imported.get(name) != value for name, value in expected.items()):
        raise StageError(f"{samples}: not the samples that {scores} are the scores of")
    return samples


def dataset(directory: str) -> pads.Dataset:
    """A stage's Parquet files as one dataset that is read lazily. Raises StageError where there are none."""
    fs, _ = filesystem(directory)
    paths = parquet_files(directory)
    if not paths:
        raise StageError(f"{directory}: no Parquet files")
    return pads.dataset(paths, filesystem=fs, format="parquet")


def rows_of(directory: str, keys: list[str], columns: list[str], view: View | None = None) -> dict[str, dict[str, Any]]:
    """The rows with these sample keys, by key. `view`: the one under which scores/ are read."""
    wanted, named = pads.field("sample_key").isin(pa.array(keys, pa.string())), ["sample_key", *columns]
    table = dataset(directory).to_table(columns=named if view is None else view.stored(named), filter=wanted)
    table = table if view is None else view.table(table, named)
    return {row["sample_key"]: row for row in table.to_pylist()}
