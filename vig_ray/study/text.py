"""A study's results for a person at a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

from vig_ray.study.advice import advice
from vig_ray.study.graph import Cell
from vig_ray.study.results import Claim, Metric, Results, Row, confidence_of
from vig_ray.study.statistics import CONFIDENCE, Difference, Mean

SAID = {"yes": "holds", "no": "does not hold", "open": "open"}


def mean_text(mean: Mean, metric: Metric, *, sign: bool = False) -> str:
    """A mean with its interval."""
    text = metric.text(mean.value, sign=sign)
    if mean.low is None or mean.high is None:
        return text
    return f"{text} [{metric.text(mean.low, sign=sign)}, {metric.text(mean.high, sign=sign)}]"


def difference_text(one: Difference, metric: Metric) -> str:
    """A difference; a star where its interval excludes 0, else how many seeds would settle it."""
    text = mean_text(one.mean, metric, sign=True)
    if one.settled:
        return f"{text} *"
    return f"{text} ({one.seeds_needed} seeds)" if one.seeds_needed else text


def table(results: Results) -> Iterator[str]:
    """Rows by metrics: mean over seeds, and below it the difference from the baseline."""
    heads = ["", "seeds", *(head(metric) for metric in results.metrics), "tokens", "s"]
    lines = [heads]
    for row in results.rows:
        cells = [row.label, str(max((len(values) for values in row.values.values()), default=0))]
        cells += [mean_text(row.mean(metric.name), metric) for metric in results.metrics]
        lines.append([*cells, _tokens(row), _seconds(row)])
        if row is not results.base_of(row):
            differences = [difference_text(results.difference(row, each.name), each) for each in results.metrics]
            lines.append([f"  - {results.base_of(row).label}", "", *differences, "", ""])
    widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
    for line in lines:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()


def cell_text(results: Results, cell: Cell) -> str:
    """One cell's numbers, as its evaluation ends."""
    (row,) = (row for row in results.rows if row.label == cell.label)
    numbers = (f"{head(metric)} {metric.text(row.values[metric.name].get(cell.seed))}" for metric in results.metrics)
    return f"  {cell.label}, seed {cell.seed}: {', '.join(numbers)}"


def head(metric: Metric) -> str:
    """A metric's name, with its unit."""
    return metric.name + (" %" if metric.percent else "") + (" ↓" if metric.higher_is_better is False else "")


def _tokens(row: Row) -> str:
    return f"{statistics.mean(row.tokens.values()):,.0f}" if row.tokens else "–"


def _seconds(row: Row) -> str:
    return f"{statistics.mean(row.seconds.values()):,.0f}" if row.seconds else "–"


def claim_text(claim: Claim, metrics: Mapping[str, Metric]) -> Iterator[str]:
    """An order, whether it holds, and its steps where there are several or it doesn't."""
    yield f"{claim.order.text}: {SAID[claim.said]}"
    metric = metrics[claim.order.metric]
    for step in claim.steps:
        told = difference_text(step.difference, metric)
        yield f"  {step.high} - {step.low}: {told}: {SAID[step.said]}"


def results_text(results: Results) -> str:
    """All of it."""
    lines = [*table(results), ""] if results.metrics else ["no evaluation has ended", ""]
    metrics = {metric.name: metric for metric in results.metrics}
    if results.metrics:
        lines.append(
            "[ ]: 95 %, Student's t over seeds, differences in pairs of one seed; *: excludes 0; (n seeds): would find "
            "it with 80 %, were it as it came out"
        )
        confidence = confidence_of(results.study)
        if results.claims and confidence != CONFIDENCE:
            lines.append(f"orders at {100 * confidence:g} %, since what is open is looked at again with more seeds")
        for claim in results.claims:
            lines += claim_text(claim, metrics)
    for each in results.scaled:
        law = each.law
        lines.append(
            f"{each.arm}: L(D) = (D / {law.scale:.4g}) ^ {law.exponent:.4f} of {len(each.sizes)} sizes; at "
            f"{each.largest:g} it says {each.predicted:.4f}, and {each.found:.4f} came out ({100 * each.error:.1f} %)"
        )
    for record in results.failed:
        lines.append(f"failed: {record.name}: {record.told.splitlines()[0] if record.told else ''}")
    for cell, why in results.missing.items():
        lines.append(f"without: {cell}: {why}")
    return "\n".join([*lines, *advice(results), f"study: {results.out}"])
