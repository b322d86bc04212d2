"""What a study's numbers recommend, in words that say how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from vig_ray.study.results import Metric, Results, Row
from vig_ray.study.statistics import difference


def advice(results: Results) -> list[str]:
    """Of the first number that is measured: the best row, how sure that is, and a cheaper one that may be as good."""
    if not results.metrics:
        return []
    metric = results.metrics[0]
    if metric.higher_is_better is None:
        return [f"{metric.name} says of no arm that it is better; measure another number first to hear of the best."]
    rows = [row for row in results.rows if math.isfinite(row.mean(metric.name).value)]
    if len(rows) < 2:
        return []
    return list(_lines(results, rows, metric))


def _lines(results: Results, rows: list[Row], metric: Metric) -> Iterator[str]:
    sign = 1 if metric.higher_is_better else -1
    best = max(rows, key=lambda row: sign * row.mean(metric.name).value)
    yield f"Best on {metric.name}: {best.label}, {metric.text(best.mean(metric.name).value)}."
    if best.label == results.baseline:
        yield f"No other arm came out above the baseline, {best.label}."
    elif any(row.label == results.baseline for row in rows):
        yield _sureness(results, best, metric)
    cheaper = _as_good(best, rows, metric)
    if cheaper is not None:
        share = statistics.mean(cheaper.tokens.values()) / statistics.mean(best.tokens.values())
        yield (
            f"{cheaper.label} trains on {100 * share:.0f} % of its tokens, and these seeds don't tell the two apart "
            f"({metric.text(cheaper.mean(metric.name).value)})."
        )
    if results.pilot is not None:
        yield (
            f"All of this is of {results.pilot:g} % of the data, and more of it may change an order: run the two or "
            "three best at full size before relying on it."
        )


def _sureness(results: Results, best: Row, metric: Metric) -> str:
    one = results.difference(best, metric.name)
    told = f"Its difference from {results.baseline} is {metric.text(one.mean.value, sign=True)}"
    if one.mean.low is None or one.mean.high is None:
        return f"{told}, of one seed: there is no telling how sure that is; run more."
    between = f"95 %: {metric.text(one.mean.low, sign=True)} to {metric.text(one.mean.high, sign=True)}"
    if one.settled:
        return f"{told} ({between}), which is settled at {one.mean.n} seeds."
    needed = f"; about {one.seeds_needed} seeds would settle it, were it as it came out" if one.seeds_needed else ""
    return f"{told} ({between}), which {one.mean.n} seeds don't settle{needed}."


def _as_good(best: Row, rows: list[Row], metric: Metric) -> Row | None:
    """The row of the fewest tokens among those of fewer than the best that seeds don't tell from it."""
    if not best.tokens:
        return None
    most = statistics.mean(best.tokens.values())
    found = []
    for row in rows:
        if row is best or not row.tokens or statistics.mean(row.tokens.values()) >= most:
            continue
        one = difference(row.values[metric.name], best.values[metric.name])
        if one.mean.n >= 2 and not one.settled:
            found.append(row)
    return min(found, key=lambda row: statistics.mean(row.tokens.values()), default=None)
