"""What a study's numbers recommend, in words that say how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from vig_ray.study.results import Metric, Results, Row, apart

_FEW = 3  # rows, among which the best is hardly found by chance


def advice(results: Results) -> list[str]:
    """Of the first number that is measured: the best row, how sure that is, and a cheaper one that may be as good.

    Where the baseline is varied, of each of its rows with those that are compared with it.
    """
    if not results.metrics:
        return []
    metric = results.metrics[0]
    if metric.higher_is_better is None:
        return [f"{metric.name} says of no arm that it is better; measure another number first to hear of the best."]
    groups: dict[str, list[Row]] = {}
    for row in results.rows:
        if math.isfinite(row.mean(metric.name).value):
            groups.setdefault(results.base_of(row).label, []).append(row)
    lines = [line for base, rows in groups.items() if len(rows) > 1 for line in _lines(results, base, rows, metric)]
    if lines and results.pilot is not None:
        lines.append(
            f"All of this is of {results.pilot:g} % of the data, and more of it may change an order: run the two or "
            "three best at full size before relying on it."
        )
    return lines


def _lines(results: Results, base: str, rows: list[Row], metric: Metric) -> Iterator[str]:
    sign = 1 if metric.higher_is_better else -1
    best = max(rows, key=lambda row: sign * row.mean(metric.name).value)
    beside = f" of {len(rows)}, which flatters it a little" if len(rows) > _FEW else ""
    yield f"Best on {metric.name}{beside}: {best.label}, {metric.text(best.mean(metric.name).value)}."
    if best.label == base:
        yield f"No other arm came out above the baseline, {base}."
    else:
        yield _sureness(results, base, best, metric)
    cheaper = _as_good(best, rows, metric)
    if cheaper is not None:
        share = statistics.mean(cheaper.tokens.values()) / statistics.mean(best.tokens.values())
        yield (
            f"{cheaper.label} trains on {100 * share:.0f} % of its tokens, and these seeds don't tell the two apart "
            f"({metric.text(cheaper.mean(metric.name).value)})."
        )


def _sureness(results: Results, base: str, best: Row, metric: Metric) -> str:
    one = results.difference(best, metric.name)
    told = f"Its difference from {base} is {metric.text(one.mean.value, sign=True)}"
    if one.mean.low is None or one.mean.high is None:
        why = "one run" if one.mean.n < 2 else f"{one.mean.n} seeds that all say the same"
        return f"{told}, of {why}: there is no telling how sure that is."
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
        one = apart(row, best, metric.name)
        if one.mean.low is not None and not one.settled:
            found.append(row)
    return min(found, key=lambda row: statistics.mean(row.tokens.values()), default=None)
