"""What the first rows of the data, and the columns of its files, say before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import islice
from typing import Any

from vig_ray.dataset.inputs import columns_of, read_rows
from vig_ray.dataset.keep import Keep, not_there
from vig_ray.dataset.layouts.layout import Layout
from vig_ray.dataset.plan import Plan
from vig_ray.dataset.rows import Row
from vig_ray.dataset.schema import RowError

log = logging.getLogger(__name__)

_FILES_LOOKED_AT = 50  # for kept columns
_ROWS_LOOKED_AT = 100


def check_kept(plan: Plan, keep: Keep) -> None:
    """Raise StageError where what is to be kept is in none of the Parquet files, which say so without being read."""
    if not keep.patterns or any(file.kind != "parquet" for file in plan.files):
        return
    there: dict[str, Any] = {}
    for file in plan.files[:_FILES_LOOKED_AT]:
        there |= columns_of(file)
        if not keep.missing(there):
            return
    if len(plan.files) <= _FILES_LOOKED_AT:
        raise not_there(keep.missing(there)[0], f"no such column in {plan.files[0].uri}", there)


def read_first(plan: Plan, layout: Layout | None, keep: Keep) -> None:
    """Read the first row of each dataset, which raises StageError where the file fits no layout; of what is kept, a few
    more.

    Rows of JSON need not all have the same keys: what none of the first ones has is told, and looked for in all.
    """
    there: dict[str, Any] = {}
    looks = bool(keep.patterns) and any(file.kind != "parquet" for file in plan.files)
    for listing in plan.listings:
        for row in islice(read_rows(listing.files[0], layout, keep), _ROWS_LOOKED_AT if looks else 1):
            there |= fields_of(row)
    for pattern in keep.missing(there) if looks else ():
        log.warning("%s", not_there(pattern, f"not in the first {_ROWS_LOOKED_AT} rows, looked for in all", there))


def fields_of(row: Row) -> Mapping[str, Any]:
    """The keys of a row and their values; none of a row that couldn't be read."""
    if isinstance(row.content, RowError):
        return {}
    return row.content if row.beside is None else {**row.beside, **row.content}
