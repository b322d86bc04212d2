"""Everything that a report says, as JSON values: the figures, the tables and the JSON file are made of it.

Losses and gains are in nats; a share is of 1. `low` and `high` bound a mean's normal 95 % interval, its values taken
as independent; they are null where there are fewer than two. A histogram's or density's lower bounds are `low` or
`with` and `without`; null bounds are open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vig_ray.report.colours import NAMES, WORDS
from vig_ray.report.part_of_speech import GainsByTag
from vig_ray.report.scans import QUARTILES, OfSource, Scanned
from vig_ray.report.tally import GROUPS, LOSS_BINS, RANGES, SAMPLE_STEP, TOKEN_STEP, Density, Moments

Json = dict[str, Any]
WRITER = "vig-ray report"
LISTED = 1000
"""The most sources that are listed one by one."""


def numbers(scanned: Scanned, *, spell: Callable[[int], str], least: int, rows: int, by_tag: GainsByTag | None) -> Json:
    """The numbers of a report. Tokens that occur `least` times are listed, at most `rows` of them at each end."""
    total = scanned.survey.of()
    return {
        "written_by": WRITER,
        "counts": _counts(total),
        "near_zero": scanned.plan.near_zero,
        "gain": _gain(scanned, (False, None), total),
        "sources": _sources(scanned),
        "sample_gains": _histogram(scanned),
        "sample_losses": _density(scanned.tally.samples, SAMPLE_STEP),
        "token_losses": _density(scanned.tally.tokens, TOKEN_STEP),
        "token_steps": [
            {"step": name, "words": words, "tokens": int(count), "share": float(count) / total.tokens}
            for name, words, count in zip(NAMES, WORDS, scanned.tally.by_step, strict=True)
        ],
        "tokens": _tokens(scanned.tally.by_token, spell, least, rows),
        "speech": None if by_tag is None else _part_of_speech(by_tag),
        "places": _ranges(scanned.tally.by_place, "tokens"),
        "lengths": _ranges(scanned.tally.by_length, "samples"),
        "thresholds": _thresholds(scanned, total),
        "failures": [
            {"class": name, "rows": count, "example": example}
            for name, (count, example) in sorted(
                scanned.survey.failures.items(), key=lambda item: (-item[1][0], item[0])
            )
        ],
    }


def _counts(total: OfSource) -> Json:
    return {
        "read": total.scored + total.text_only + total.failed,
        "scored": total.scored,
        "text_only": total.text_only,
        "failed": total.failed,
        "truncated": total.truncated,
        "answer_tokens": total.tokens,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def mean_row(moments: Moments, category: int) -> Json:
    """The mean of a category and its interval."""
    mean, half = float(moments.mean[category]), float(moments.half_width[category])
    return {"mean": _number(mean), "low": _number(mean - half), "high": _number(mean + half)}


def _gain(scanned: Scanned, name: tuple[bool, str | None] | None, of: OfSource) -> Json:
    """Means, quartiles where they were looked for, and groups of the samples `of`; `name`: whose quartiles they are."""
    row: Json = {"samples": of.scored, **mean_row(of.moments, 0)}
    row |= {"clean_loss": mean_row(of.moments, 1)["mean"], "reference_loss": mean_row(of.moments, 2)["mean"]}
    for q, word in zip((0.0, *QUARTILES, 1.0), ("min", "q1", "median", "q3", "max"), strict=True):
        if name is not None and (*name, q) in scanned.quantiles:
            row[word] = scanned.quantiles[(*name, q)]
    row["groups"] = {
        group: {"samples": int(count), "share": int(count) / of.scored}
        for group, count in zip(GROUPS, of.groups, strict=True)
    }
    return row


def _sources(scanned: Scanned) -> list[Json]:
    """A row a source, those with most scored samples first. `shown`: it has quartiles and a histogram of its own.

    The sources after the first LISTED are one row together, which has their number as `others`.
    """
    order = scanned.survey.largest()
    rows = []
    for number in order[:LISTED]:
        name, of = scanned.survey.sources[number], scanned.survey.of([number])
        row: Json = {"source": name, "shown": name in scanned.plan.sources, **_counts(of)}
        rows.append(row | (_gain(scanned, (True, name), of) if of.scored else {}))
    if order[LISTED:]:
        rest = scanned.survey.of(order[LISTED:])
        row = {"others": len(order[LISTED:]), "shown": False, **_counts(rest)}
        rows.append(row | (_gain(scanned, None, rest) if rest.scored else {}))
    return rows


def _histogram(scanned: Scanned) -> Json:
    """Scored samples of each shown source, and of the others together, by group and bin of their gain."""
    edges = [None, *scanned.plan.edges.tolist(), None]
    others = {"others": True}
    bins = []
    for number, group, index in np.argwhere(scanned.tally.gains).tolist():
        name: Json = {"source": scanned.plan.sources[number]} if number < len(scanned.plan.sources) else others
        count = int(scanned.tally.gains[number, group, index])
        low, high = edges[index], edges[index + 1]
        bins.append({**name, "group": GROUPS[group], "low": low, "high": high, "samples": count})
    return {"step": round(float(scanned.plan.edges[1] - scanned.plan.edges[0]), 9), "bins": bins}


def _density(density: Density, step: float) -> Json:
    size = LOSS_BINS + 1
    cells = [
        {
            "with": round(int(cell) // size * step, 9),
            "without": round(int(cell) % size * step, 9),
            "count": int(density.count[cell]),
            "mean_gain": float(density.gain[cell] / density.count[cell]),
        }
        for cell in np.flatnonzero(density.count)
    ]
    return {"step": step, "open_from": round(LOSS_BINS * step, 9), "cells": cells}


def _tokens(moments: Moments, spell: Callable[[int], str], least: int, rows: int) -> Json:
    frequent = np.flatnonzero(moments.count >= least)
    order = frequent[np.lexsort((frequent, -moments.mean[frequent]))]

    def listed(ids: Any) -> list[Json]:
        return [
            {
                "id": int(token),
                "text": spell(int(token)),
                "count": int(moments.count[token]),
                **mean_row(moments, token),
            }
            for token in ids
        ]

    return {
        "least": least,
        "different": int((moments.count > 0).sum()),
        "frequent": len(frequent),
        # No token is in both.
        "highest": listed(order[: min(rows, (len(order) + 1) // 2)]),
        "lowest": listed(order[::-1][: min(rows, len(order) // 2)]),
    }


def _part_of_speech(by_tag: GainsByTag) -> Json:
    counts = {tag: int(moments.count[0]) for tag, moments in by_tag.gains.items()}
    before = {tag: count / sum(counts.values()) for tag, count in counts.items()}
    of_kept = sum((by_tag.kept or {}).values())
    after = {tag: (by_tag.kept or {}).get(tag, 0) / of_kept if of_kept else None for tag in counts}
    rows = [
        {"tag": tag, "words": by_tag.words[tag], "tokens": counts[tag], "share": before[tag], "kept_share": after[tag],
         **mean_row(moments, 0)}
        for tag, moments in by_tag.gains.items()
    ]  # fmt: skip
    ranked = sorted(rows, key=lambda row: (-row["mean"], row["tag"]))
    moved = sum(abs((after[tag] or 0.0) - before[tag]) for tag in counts) / 2 if of_kept else None
    return {"tagger": by_tag.tagger, "samples": by_tag.samples, "moved": moved, "tags": ranked}


def _ranges(moments: Moments, what: str) -> list[Json]:
    ends = [*(RANGES[1:] - 1).tolist(), None]
    return [
        {"first": int(first), "last": last, what: int(moments.count[category]), **mean_row(moments, category)}
        for category, (first, last) in enumerate(zip(RANGES, ends, strict=True))
        if moments.count[category]
    ]


def _thresholds(scanned: Scanned, total: OfSource) -> list[Json]:
    """The columns of VIG's Tables C.1, E.2 and E.3: tau_p, what is kept, and which tokens are active."""
    rows = []
    for p, tau in sorted(scanned.taus.items()):
        level = int(np.searchsorted(scanned.plan.thresholds, tau))
        counts = {
            "samples": (scanned.tally.kept[level], total.scored),
            "sample_tokens": (scanned.tally.kept_tokens[level], total.tokens),
            "active_tokens": (scanned.tally.active[level], total.tokens),
        }
        row: Json = {"p": p, "tau": tau}
        for name, (count, whole) in counts.items():
            row |= {name: int(count), f"{name}_share": int(count) / whole}
        rows.append(row)
    return rows
