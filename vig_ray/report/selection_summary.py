"""What a report says about a selection of the scores that it shows."""

from __future__ import annotations

import logging
from typing import Any

from vig_ray.errors import StageError
from vig_ray.report.numbers import LISTED
from vig_ray.selection.strategies import strategies
from vig_ray.stage import read_stage
from vig_ray.storage import absolute, join
from vig_ray.tables.directories import selection_directory
from vig_ray.tables.passes import View

log = logging.getLogger(__name__)

Json = dict[str, Any]


def summarize_selection(given: str | None, scores: str, view: View) -> tuple[str | None, Json | None, float | None]:
    """The selection's directory, its summary, and its threshold of VIG if it has one alone; Nones without a selection.

    `given` None: the selection beside the scores, if it was made from them. `view`: the reference that it must be of.
    Raises StageError where the one that was given was made from other scores or another reference.
    """
    if given is None:
        beside = join(absolute(scores).rpartition("/")[0], "selection")
        try:
            return summarize_selection(beside, scores, view) if read_stage(beside) else (None, None, None)
        except StageError as error:
            log.info("%s; the report goes without it", error)
            return None, None, None
    directory, selection_record = selection_directory(given)
    theirs = selection_record["identity"]["scores"]
    if theirs != view.scored:
        by = selection_record.get("reference", view.reference)
        if by != view.reference:
            raise StageError(f"{directory}: selected by the gain under {by}; take --reference {by}, or select again")
        raise StageError(f"{directory}: a selection of other scores than {scores}; select again")
    selection, kept = selection_record["selection"], selection_record["selection"]["kept"][0]
    calibrated = bool(selection_record["identity"]["options"].get("calibrate"))
    by_vig = strategies()[selection["strategy"]].ranking == "vig"
    taus = list(kept["thresholds"].values())
    scored = {source: counts["scored"] for source, counts in selection["read"]["by_source"].items()}
    tokens = {source: counts["tokens"] for source, counts in selection["read"]["by_source"].items()}

    summary = {
        "strategy": selection["strategy"],
        "share": kept["share"],
        "by_vig": by_vig,
        "calibrated": calibrated,
        "thresholds": kept["thresholds"],
        "text_only": kept["total"]["text_only"],
        "tilt": kept.get("tilt"),
        **_row(kept["total"], sum(scored.values()), sum(tokens.values())),
        "sources": _by_source(kept["by_source"], scored, tokens),
    }
    # That of gains less their group's null is none of the gains that the report shows.
    return directory, summary, taus[0] if len(taus) == 1 and by_vig and not calibrated else None


def _by_source(kept: Json, scored: dict[str, int], tokens: dict[str, int]) -> list[Json]:
    """A row a source, those with most scored samples first; the sources after the first LISTED are one row together."""
    order = sorted((source for source in scored if scored[source]), key=lambda source: (-scored[source], source))
    rows: list[Json] = [
        {"source": source or None, **_row(kept.get(source, {}), scored[source], tokens[source])}
        for source in order[:LISTED]
    ]
    rest = order[LISTED:]
    if rest:
        counts = {
            name: sum(kept.get(source, {}).get(name, 0) for source in rest) for name in ("scored", "tokens", "active")
        }
        whole = sum(scored[source] for source in rest), sum(tokens[source] for source in rest)
        rows.append({"others": len(rest), **_row(counts, *whole)})
    return rows


def _row(counts: Json, samples: int, answer_tokens: int) -> Json:
    """What is kept of so many scored samples and their answer tokens, as counts and shares."""
    row: Json = {}
    whole = {"samples": samples, "sample_tokens": answer_tokens, "active_tokens": answer_tokens}
    for name, count in (("samples", "scored"), ("sample_tokens", "tokens"), ("active_tokens", "active")):
        kept = counts.get(count, 0)
        row |= {name: kept, f"{name}_share": kept / whole[name] if whole[name] else 0.0}
    return row
