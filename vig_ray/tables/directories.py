"""Which scores/, selection/ or samples/ a user means, and a few of their rows."""

from __future__ import annotations

from typing import Any

import pyarrow.dataset as pads

from vig_ray.dataset.importing import samples_directory
from vig_ray.errors import StageError
from vig_ray.stage import parquet_files, read_stage
from vig_ray.storage import absolute, filesystem, join


def scores_directory(given: str) -> str:
    """The scores/ directory that a user means: itself, or the one inside what he gave. Raises StageError."""
    for directory in (given, join(given, "scores")):
        record = read_stage(directory)
        if record is not None and record["stage"] == "score":
            return directory
    raise StageError(f"{given}: no scores here; --scores takes what `vig score --out` wrote")


def selection_directory(given: str) -> tuple[str, dict[str, Any]]:
    """The selection/ directory that a user means, and its record. Raises StageError."""
    for directory in (given, join(given, "selection")):
        record = read_stage(directory)
        if record is not None and record["stage"] == "select":
            if not record["complete"] or len(record["selection"]["kept"]) > 1:
                raise StageError(f"{directory}: nothing is selected here; run vig select with one --p")
            return directory, record
    raise StageError(f"{given}: no selection here; --selection takes what `vig select --out` wrote")


def samples_beside(scores: str, given: str | None, record: dict[str, Any]) -> str | None:
    """The samples that scores are of: the directory given or samples/ in it, else samples/ beside the scores; None
    where there is none.

    Raises StageError where the one that was given isn't theirs.
    """
    found = samples_directory(given or join(absolute(scores).rpartition("/")[0], "samples"))
    if found is None:
        if given is not None:
            raise StageError(f"{given}: no samples here; --samples takes what `vig import --out` wrote")
        return None
    imported = read_stage(found) or {}
    expected = record.get("identity", {}).get("samples", {})
    if any(imported.get(name) != value for name, value in expected.items()):
        raise StageError(f"{found}: not the samples that {scores} are the scores of")
    return found


def dataset(directory: str) -> pads.Dataset:
    """A stage's Parquet files as one dataset, read as far as needed. Raises StageError where there are none."""
    fs, _ = filesystem(directory)
    paths = parquet_files(directory)
    if not paths:
        raise StageError(f"{directory}: no Parquet files")
    return pads.dataset(paths, filesystem=fs, format="parquet")


def rows_of(directory: str, keys: list[str], columns: list[str]) -> dict[str, dict[str, Any]]:
    """The rows with these sample keys, by key."""
    wanted = pads.field("sample_key").isin(keys)
    table = dataset(directory).to_table(columns=["sample_key", *columns], filter=wanted)
    return {row["sample_key"]: row for row in table.to_pylist()}
