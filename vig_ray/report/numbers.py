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
from vig_ray.report.part_of_speech import Spoken
from vig_ray.report.scans import QUARTILES, Found, OfSource
from vig_ray.report.tally import GROUPS, LOSS_BINS, RANGES, SAMPLE_STEP, TOKEN_STEP, Density, Moments

Json = dict[str, Any]
WRITER = "vig-ray report"
LISTED = 1000
"""Sources that are told one by one."""


def numbers(found: Found, *, spell: Callable[[int], str], least: int, rows: int, spoken: Spoken | None) -> Json:
    """The numbers of a report. `least`: times that a token must occur, and `rows` how many are told, for Table 2."""
    total = found.survey.of()
    return {
        "written_by": WRITER,
        "counts": _counts(total),
        "near_zero": found.plan.near_zero,
        "gain": _gain(found, (False, None), total),
        "sources": _sources(found),
        "sample_gains": _histogram(found),
        "sample_losses": _density(found.tally.samples, SAMPLE_STEP),
        "token_losses": _density(found.tally.tokens, TOKEN_STEP),
        "token_steps": [
            {"step": name, "words": words, "tokens": int(count), "share": float(count) / total.tokens}
            for name, words, count in zip(NAMES, WORDS, found.tally.by_step, strict=True)
        ],
        "tokens": _tokens(found.tally.by_token, spell, least, rows),
        "speech": None if spoken is None else _speech(spoken),
        "places": _ranges(found.tally.by_place, "tokens"),
        "lengths": _ranges(found.tally.by_length, "samples"),
        "thresholds": _thresholds(found, total),
        "failures": [
            {"class": name, "rows": count, "example": example}
            for name, (count, example) in sorted(found.survey.failures.items(), key=lambda item: (-item[1][0], item[0]))
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


def _mean(moments: Moments, at: int) -> Json:
    mean, half = float(moments.mean[at]), float(moments.half_width[at])
    return {"mean": _number(mean), "low": _number(mean - half), "high": _number(mean + half)}


def _gain(found: Found, name: tuple[bool, str | None] | None, of: OfSource) -> Json:
    """Of the samples of a source, of all, or of some: means, quartiles where they were looked for, and groups."""
    told: Json = {"samples": of.scored, **_mean(of.moments, 0)}
    told |= {"clean_loss": _mean(of.moments, 1)["mean"], "reference_loss": _mean(of.moments, 2)["mean"]}
    for q, word in zip((0.0, *QUARTILES, 1.0), ("min", "q1", "median", "q3", "max"), strict=True):
        if name is not None and (*name, q) in found.quantiles:
            told[word] = found.quantiles[(*name, q)]
    told["groups"] = {
        group: {"samples": int(count), "share": int(count) / of.scored}
        for group, count in zip(GROUPS, of.groups, strict=True)
    }
    return told


def _sources(found: Found) -> list[Json]:
    """By falling number of scored samples. `shown`: with quartiles and a histogram of its own.

    Beyond LISTED sources, the others are one row, with how many they are as `others`.
    """
    order = found.survey.largest()
    told = []
    for at in order[:LISTED]:
        name, of = found.survey.sources[at], found.survey.of([at])
        row: Json = {"source": name, "shown": name in found.plan.sources, **_counts(of)}
        told.append(row | (_gain(found, (True, name), of) if of.scored else {}))
    if order[LISTED:]:
        rest = found.survey.of(order[LISTED:])
        row = {"others": len(order[LISTED:]), "shown": False, **_counts(rest)}
        told.append(row | (_gain(found, None, rest) if rest.scored else {}))
    return told


def _histogram(found: Found) -> Json:
    """Scored samples of each shown source (and of the others together) by group and bin of their gain."""
    edges = [None, *found.plan.edges.tolist(), None]
    others = {"others": True}
    told = []
    for number, group, at in np.argwhere(found.tally.gains).tolist():
        name: Json = {"source": found.plan.sources[number]} if number < len(found.plan.sources) else others
        count = int(found.tally.gains[number, group, at])
        told.append({**name, "group": GROUPS[group], "low": edges[at], "high": edges[at + 1], "samples": count})
    return {"step": round(float(found.plan.edges[1] - found.plan.edges[0]), 9), "bins": told}


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

    def told(ids: Any) -> list[Json]:
        return [
            {"id": int(token), "text": spell(int(token)), "count": int(moments.count[token]), **_mean(moments, token)}
            for token in ids
        ]

    return {
        "least": least,
        "different": int((moments.count > 0).sum()),
        "frequent": len(frequent),
        # None in both.
        "highest": told(order[: min(rows, (len(order) + 1) // 2)]),
        "lowest": told(order[::-1][: min(rows, len(order) // 2)]),
    }


def _speech(spoken: Spoken) -> Json:
    rows = [
        {"tag": tag, "words": spoken.words[tag], "tokens": int(moments.count[0]), **_mean(moments, 0)}
        for tag, moments in spoken.gains.items()
    ]
    ranked = sorted(rows, key=lambda row: (-row["mean"], row["tag"]))
    return {"tagger": spoken.tagger, "samples": spoken.samples, "tags": ranked}


def _ranges(moments: Moments, what: str) -> list[Json]:
    ends = [*(RANGES[1:] - 1).tolist(), None]
    return [
        {"first": int(first), "last": last, what: int(moments.count[at]), **_mean(moments, at)}
        for at, (first, last) in enumerate(zip(RANGES, ends, strict=True))
        if moments.count[at]
    ]


def _thresholds(found: Found, total: OfSource) -> list[Json]:
    """The columns of VIG's Tables C.1, E.2 and E.3: tau_p, what is kept, and which tokens are active."""
    told = []
    for p, tau in sorted(found.taus.items()):
        at = int(np.searchsorted(found.plan.thresholds, tau))
        counts = {
            "samples": (found.tally.kept[at], total.scored),
            "sample_tokens": (found.tally.kept_tokens[at], total.tokens),
            "active_tokens": (found.tally.active[at], total.tokens),
        }
        row: Json = {"p": p, "tau": tau}
        for name, (count, whole) in counts.items():
            row |= {name: int(count), f"{name}_share": int(count) / whole}
        told.append(row)
    return told
