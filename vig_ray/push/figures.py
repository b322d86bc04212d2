"""The figures that a card tells, counted from the scores as `vig report` counts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vig_ray.errors import StageError
from vig_ray.report.numbers import numbers
from vig_ray.report.scans import scan_scores
from vig_ray.scoring.summary import summarise
from vig_ray.stage import parquet_files
from vig_ray.storage import filesystem
from vig_ray.tables.passes import View, references_of
from vig_ray.tables.scan import Files

NEAR_ZERO = 0.05
"""Nats up to which a sample's gain is near zero: the report's default."""
_P = 70.0
_SOURCES = 12


def figures(scores: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Counts, gains of all samples, by reference and by source, as JSON values; a few scans of the scores.

    Raises StageError where the scores are of a version that a report can't read.
    """
    references = references_of(record)
    summary = summarise(scores, references)
    found: dict[str, Any] = {
        "counts": summary.counts(),
        "references": summary.gains()["references"],
        "gain": None,
        "sources": [],
    }
    if not summary.scored:
        return found
    scanned = scan_scores(
        Files(parquet_files(scores), filesystem(scores)[0], view=View.of(dict(record), scores)),
        scores,
        shares=(_P,),
        near_zero=NEAR_ZERO,
        shown_sources=_SOURCES,
        gallery_size=0,
        choose_tau=lambda taus: taus[_P],
        seed=0,
        tagged=0,
    )
    told = numbers(scanned, spell=str, least=1, rows=0, by_tag=None)
    if told["counts"]["scored"] != summary.scored:
        raise StageError(
            f"{scores}: {summary.scored:,} samples scored, then {told['counts']['scored']:,}: being written?"
        )
    shown = ("source", "others", "read", "scored", "mean", "median", "groups")
    sources = [{name: row[name] for name in shown if name in row} for row in told["sources"] if row["scored"]]
    kept = sources if len(sources) <= _SOURCES else sources[: _SOURCES - 1]
    return found | {"gain": told["gain"], "sources": kept, "more_sources": len(sources) - len(kept)}
