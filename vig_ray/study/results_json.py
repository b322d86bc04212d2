"""A study's results as JSON values: OUT/study.json."""

from __future__ import annotations

import math
from typing import Any

from vig_ray.study.advice import advice
from vig_ray.study.results import Claim, Results, Row, Scaled
from vig_ray.study.statistics import Difference, Mean

Json = dict[str, Any]


def as_json(results: Results) -> Json:
    """All of it; null for what isn't a number."""
    study = results.study
    return {
        "title": study.title,
        "about": study.about,
        "study": study.model_dump(mode="json"),
        "baseline": results.baseline,
        "metrics": [metric._asdict() for metric in results.metrics],
        "rows": [_row(results, row) for row in results.rows],
        "orders": [_claim(claim) for claim in results.claims],
        "scaling": [_scaled(each) for each in results.scaled],
        "failed": [{"name": each.name, "told": each.told, "command": each.command} for each in results.failed],
        "missing": dict(results.missing),
        "trials": [{"label": each.label, "rungs": list(each.rungs)} for each in results.trials],
        "cost": results.cost,
        "pilot": results.pilot,
        "advice": advice(results),
    }


def _row(results: Results, row: Row) -> Json:
    made: Json = {
        "label": row.label,
        "arm": row.arm,
        "axes": dict(row.axes),
        "compared_with": results.base_of(row).label,
        "tokens": {str(seed): tokens for seed, tokens in row.tokens.items()},
        "seconds": {str(seed): seconds for seed, seconds in row.seconds.items()},
        "numbers": {},
    }
    for metric in results.metrics:
        made["numbers"][metric.name] = {
            "by_seed": {str(seed): _finite(value) for seed, value in row.values[metric.name].items()},
            "mean": _mean(row.mean(metric.name)),
            "difference": None if row is results.base_of(row) else _difference(results.difference(row, metric.name)),
        }
    return made


def _claim(claim: Claim) -> Json:
    return {
        "text": claim.order.text,
        "metric": claim.order.metric,
        "said": claim.said,
        "steps": [
            {"low": step.low, "high": step.high, "said": step.said, "difference": _difference(step.difference)}
            for step in claim.steps
        ],
    }


def _scaled(each: Scaled) -> Json:
    return {
        "arm": each.arm,
        "scale": each.law.scale,
        "exponent": each.law.exponent,
        "sizes": list(each.sizes),
        "largest": each.largest,
        "predicted": each.predicted,
        "found": each.found,
        "error": each.error,
    }


def _difference(one: Difference) -> Json:
    return {"mean": _mean(one.mean), "p": one.p, "settled": one.settled, "seeds_needed": one.seeds_needed}


def _mean(mean: Mean) -> Json:
    return {"value": _finite(mean.value), "low": mean.low, "high": mean.high, "seeds": mean.n}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
