"""The bootstrap against a resampling of rows one by one, and against scipy's; relative performance against VisNec's."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats

from vig_ray.evaluation.outcomes import Marked, compared
from vig_ray.evaluation.statistics import Estimate, estimate, generator_of, relative, resampled, unit_weights
from vig_ray.evaluation.summary import EvalSummary, relative_performance
from vig_ray.evaluation.task import Metric, mean


class Made:
    """A task whose numbers are a mean and a ratio of sums, which weights and rows drawn again must give alike."""

    name = "made"
    source = "this test"
    metrics_of = (Metric("score", main=True), Metric("ratio", percent=False, higher_is_better=False))

    def metrics(self, marks: Any, weights_N: Any) -> dict[str, float]:
        under = float((marks["under"] * weights_N).sum())
        ratio = float((marks["over"] * weights_N).sum()) / under if under else float("nan")
        return {"score": mean(marks["score"], weights_N), "ratio": ratio}


def marked(seed: int, *, failed: tuple[int, ...] = (), questions: int = 60, better: float = 0.0) -> Marked:
    """Made marks of questions in units of one to three; question `n` is as hard for every seed."""
    hard = np.random.default_rng(99).random(questions)
    rng = np.random.default_rng(seed)
    answered = np.ones(questions, dtype=bool)
    answered[list(failed)] = False
    columns = {
        "score": (rng.random(questions) * 0.3 + 0.4 + better > hard).astype(float),
        "over": rng.random(questions) + hard,
        "under": rng.integers(1, 9, questions).astype(float),
    }
    for values in columns.values():
        values[~answered] = np.nan
    keys = pa.array([f"made/{n:010d}" for n in range(questions)])
    units = pa.array([f"u{n // 2}" if n < 40 else f"made/{n:010d}" for n in range(questions)])
    groups = pa.array(["even" if n % 2 == 0 else None for n in range(questions)])
    return Marked(keys, units, groups, answered, columns, Counter(Torn=len(failed)), {"Torn": "Torn: a page"})


def resampled_by_hand(one: Marked, other: Marked, draws: int, seed: int) -> dict[str, Any]:
    """The differences of each number, in every draw: units drawn, their rows put below each other, numbers of those."""
    both = one.answered & other.answered
    units = list(dict.fromkeys(one.units.to_pylist()))
    rows_of = {unit: [n for n, each in enumerate(one.units.to_pylist()) if each == unit and both[n]] for unit in units}
    drawn = generator_of(seed, "made").integers(0, len(units), size=(draws, len(units)))
    found: dict[str, list[float]] = {"score": [], "ratio": []}
    for draw in drawn:
        rows = [row for unit in draw for row in rows_of[units[unit]]]
        values = []
        for columns in (one.columns, other.columns):
            score, over, under = (columns[name][rows] for name in ("score", "over", "under"))
            values.append({"score": np.mean(score), "ratio": np.sum(over) / np.sum(under)})
        for name, differences in found.items():
            differences.append(values[0][name] - values[1][name])
    return {name: np.asarray(values) for name, values in found.items()}


def test_differences_are_those_of_rows_drawn_one_by_one() -> None:
    base, other = marked(1), marked(2, failed=(3, 50), better=0.2)
    found = compared(Made(), {"base": base, "other": other}, "base", draws=200, seed=7)  # type: ignore[arg-type]
    by_hand = resampled_by_hand(other, base, 200, 7)
    assert (found.questions, found.units, found.models["other"].common) == (60, 40, 58)
    assert found.models["base"].differences == {}
    for name, draws in by_hand.items():
        one = found.models["other"].differences[name]
        low, high = np.percentile(draws, [2.5, 97.5])
        assert (one.low, one.high) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))
    # Its own number is of all that it answered, the group's of the even ones of these.
    assert found.models["other"].numbers["score"].value == np.nanmean(other.columns["score"])
    assert found.models["other"].by_group["even"] == (
        29, {"score": np.nanmean(other.columns["score"][::2]),
             "ratio": pytest.approx(np.nansum(other.columns["over"][::2]) / np.nansum(other.columns["under"][::2]))},
    )  # fmt: skip
    assert found.models["base"].answered == 60


def test_intervals_of_a_paired_mean_are_scipys_within_chance() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.random(400), rng.random(400) + 0.05
    ours: list[Any] = [
        lambda w: {"m": float(np.average(a, weights=w))},
        lambda w: {"m": float(np.average(b, weights=w))},
    ]
    first, second = resampled(ours, 400, 4000, generator_of(0, "x"))
    one = estimate(float(b.mean() - a.mean()), second["m"] - first["m"])
    theirs = scipy.stats.bootstrap(
        (a, b), lambda x, y, axis: np.mean(y - x, axis=axis), paired=True, method="percentile", n_resamples=4000,
        rng=np.random.default_rng(1),
    )  # fmt: skip
    spread = theirs.standard_error
    # A percentile at 2.5 % of 4,000 draws has a standard error of about 0.042 of the spread.
    assert one.low == pytest.approx(theirs.confidence_interval.low, abs=0.2 * spread)
    assert one.high == pytest.approx(theirs.confidence_interval.high, abs=0.2 * spread)
    assert np.std(second["m"] - first["m"]) == pytest.approx(spread, rel=0.1)


def test_weights_come_in_parts_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(unit_weights(13, 50, generator_of(3, "y"))))
    monkeypatch.setattr("vig_ray.evaluation.statistics._AT_ONCE", 40)
    parts = list(unit_weights(13, 50, generator_of(3, "y")))
    assert len(parts) == 17
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole.shape == (50, 13)
    assert (whole.sum(axis=1) == 13).all()
    assert estimate(1.0, None) == estimate(1.0, np.zeros(0)) == Estimate(1.0)
    assert estimate(1.0, np.array([1.0, np.nan])) == Estimate(1.0)  # half of the draws have no value


VISNEC_FULL = (79.1, 63.0, 67.9, 68.4, 57.9, 1476.9, 64.3, 58.3, 86.4, 30.0)
VISNEC = {
    94.2: (75.3, 55.1, 58.8, 67.8, 54.3, 1397.5, 61.0, 53.5, 84.9, 30.2),
    97.7: (76.5, 57.9, 65.6, 70.1, 55.2, 1457.7, 64.8, 56.5, 85.4, 29.6),
    100.2: (78.0, 60.8, 69.8, 67.9, 56.2, 1457.2, 64.9, 59.1, 86.0, 32.1),
}
"""Table 1 of VisNec: all data, and Random, PreSel and VisNec itself by the Rel. that it prints."""


@pytest.mark.parametrize("rel", list(VISNEC))
def test_relative_performance_is_visnecs(rel: float) -> None:
    metric = Metric("x", percent=False)
    values = [relative(metric, value, full) for value, full in zip(VISNEC[rel], VISNEC_FULL, strict=True)]
    assert 100 * np.mean(values) == pytest.approx(rel, abs=0.05)


def test_where_less_is_better_the_ratio_is_turned_round() -> None:
    """VIG's Table 3: C_S of 47.00 is better than 52.93."""
    assert relative(Metric("C_S", higher_is_better=False), 0.47, 0.5293) == pytest.approx(1.1262, abs=1e-4)
    assert relative(Metric("acc"), 0.0, 0.5) == 0.0
    for value, baseline in ((0.5, 0.0), (np.nan, 0.5), (0.5, -1.0)):
        assert np.isnan(relative(Metric("acc"), value, baseline))


def test_the_average_has_the_draws_of_all_tasks() -> None:
    first = compared(Made(), {"a": marked(1), "b": marked(2, better=0.2)}, "a", draws=300, seed=0)  # type: ignore[arg-type]
    other = Made()
    other.name = "other"
    second = compared(other, {"a": marked(3), "b": marked(4, better=0.2)}, "a", draws=300, seed=0)  # type: ignore[arg-type]
    rel = relative_performance([first, second], "b")
    ratios = [one.models["b"].on_common.draws["score"] / one.models["b"].baseline_on_common.draws["score"]
              for one in (first, second)]  # fmt: skip
    assert rel.mean.value == pytest.approx(np.mean([one.value for one in rel.of_task.values()]))
    assert rel.mean.low == pytest.approx(np.percentile(np.mean(ratios, axis=0), 2.5))
    assert abs(np.corrcoef(ratios[0], ratios[1])[0, 1]) < 0.2  # of two tasks, other draws
    assert (rel.of_task["made"].high or 0) - (rel.of_task["made"].low or 0) > (rel.mean.high or 0) - (rel.mean.low or 0)


def test_the_table_says_all_of_it() -> None:
    models = {
        "base": marked(1),
        "other": marked(2, failed=(3, 50), better=0.2),
        "none": marked(3, failed=tuple(range(60))),
    }
    task = compared(Made(), models, "base", draws=100, seed=0)  # type: ignore[arg-type]
    summary = EvalSummary("out/evaluation", {name: f"/m/{name}" for name in models}, "base", (task,), 100, 0)
    text = summary.text()
    lines = text.splitlines()
    assert lines[0].split() == ["made"]
    assert lines[1].split() == ["score", "%", "ratio", "↓", "Rel.", "%"]
    assert [line.split("  ")[0] for line in lines[2:7]] == ["base", "other", "", "none", ""]
    assert lines[3].split()[1] == f"{100 * task.models['other'].numbers['score'].value:.1f}"
    assert "questions: made 60 in 40 units" in text
    assert "made: 2 of 60 failed by other, not in its numbers\n  2 Torn: a page" in text
    assert "of none without made" in text
    assert summary.failed == 62
    assert max(map(len, lines)) <= 140
    told = summary.json()
    assert told["tasks"][0]["models"]["none"]["numbers"]["score"] == {"value": None, "low": None, "high": None}
    assert told["relative"]["other"]["value"] == pytest.approx(summary.relatives()["other"].mean.value)
