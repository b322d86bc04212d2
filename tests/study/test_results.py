"""Rows, orders, laws and advice of numbers that are made up for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vig_ray.study.advice import advice
from vig_ray.study.file import StudyFile
from vig_ray.study.graph import MODEL_NAME, Cell, Graph, Node
from vig_ray.study.record import Record
from vig_ray.study.results import Results, Row, _scaled, apart, gather
from vig_ray.study.results_json import as_json
from vig_ray.study.text import results_text

Numbers = Mapping[tuple[str, str, int], float]  # by arm, axis value ("" for none) and seed


def found(numbers: Numbers, *, tokens: Mapping[str, int] | None = None, lower: bool = False, axis: str = "select.p",
          pilot: float | None = None, **changes: Any) -> Results:  # fmt: skip
    """The results of a study with these numbers of the one metric t.m."""
    arms = list(dict.fromkeys(arm for arm, *_ in numbers))
    study = StudyFile(stages={"select": {}, "train": {}, "eval": {}}, arms={arm: {} for arm in arms}, **changes)
    cells, records, nodes = [], {}, {}
    for (arm, value, seed), number in numbers.items():
        label = f"{arm}{value}s{seed}"
        metric = {"name": "m", "percent": True, "higher_is_better": not lower}
        task = {
            "name": "t",
            "main": "m",
            "metrics": [metric],
            "models": {MODEL_NAME: {"numbers": {"m": {"value": number}}}},
        }
        records[f"train-{label}"] = Record(
            f"train-{label}", "train", "train", "", "done", "", 3.0, tokens=(tokens or {}).get(arm + value, 100)
        )
        records[f"eval-{label}"] = Record(f"eval-{label}", "eval", "eval", "", "done", "", 1.0, table={"tasks": [task]})
        for stage in ("train", "eval"):
            nodes[f"{stage}-{label}"] = Node(f"{stage}-{label}", stage, stage, {})
        cells.append(Cell(arm, {axis: float(value)} if value else {}, seed, (f"train-{label}", f"eval-{label}")))
    return gather(study, Graph(nodes, tuple(cells)), cells, records, "out", {}, {}, pilot)


def numbers_of(**arms: Sequence[float]) -> Numbers:
    return {(arm, "", seed): value for arm, values in arms.items() for seed, value in enumerate(values)}


def test_rows_and_differences_by_scipy() -> None:
    full, vig = [0.7, 0.72, 0.69], [0.74, 0.77, 0.72]
    results = found(numbers_of(full=full, vig=vig))
    row = as_json(results)["rows"][1]
    assert row["numbers"]["t.m"]["mean"]["value"] == pytest.approx(np.mean(vig))
    expected = stats.ttest_rel(vig, full)
    difference = row["numbers"]["t.m"]["difference"]
    assert difference["p"] == pytest.approx(expected.pvalue)
    assert difference["mean"]["low"] == pytest.approx(expected.confidence_interval(0.95).low)
    assert as_json(results)["rows"][0]["numbers"]["t.m"]["difference"] is None
    assert "+4.0 [" in results_text(results)


@pytest.mark.parametrize(
    ("vig", "said"), [([0.8, 0.82, 0.79], "yes"), ([0.6, 0.62, 0.59], "no"), ([0.6, 0.9, 0.7], "open")]
)
def test_an_order_is_what_its_steps_are(vig: Sequence[float], said: str) -> None:
    numbers = numbers_of(random=[0.5, 0.52, 0.5], full=[0.7, 0.71, 0.69], vig=vig)
    results = found(numbers, orders=("random < full < vig on t.m",))
    (claim,) = results.claims
    assert [step.said for step in claim.steps] == ["yes", said]
    assert claim.said == said


def test_an_order_of_varied_arms_is_one_for_each_value() -> None:
    numbers = {(arm, value, seed): base + step + 0.001 * seed
               for arm, base in (("random", 0.5), ("vig", 0.6)) for value, step in (("30", 0.0), ("70", 0.1))
               for seed in range(3)}  # fmt: skip
    orders = ("random < vig on t.m", "vig p=30.0 < vig p=70.0 on t.m")
    results = found(numbers, orders=orders, vary={"select.p": (30, 70)})
    steps = [(step.low, step.high) for claim in results.claims for step in claim.steps]
    assert steps == [
        ("random p=30.0", "vig p=30.0"), ("random p=70.0", "vig p=70.0"), ("vig p=30.0", "vig p=70.0"),
    ]  # fmt: skip
    assert results.baseline == "random p=30.0"


def test_a_law_predicts_the_largest() -> None:
    sizes = (250, 500, 1000, 2000, 4000)
    numbers = {
        ("vig", str(size), seed): (size / 1e7) ** -0.1 * (1 + 0.001 * seed) for size in sizes for seed in range(2)
    }
    results = found(numbers, axis="samples", vary={"samples": sizes}, values={"samples": 1},
                    scaling={"over": "samples", "of": "t.m"})  # fmt: skip
    (law,) = results.scaled
    assert law.largest == 4000
    assert law.sizes == sizes[:-1]
    assert law.law.exponent == pytest.approx(-0.1, abs=1e-6)
    assert law.error < 1e-6
    assert "at 4000 it says" in results_text(results)


def test_advice_names_the_best_and_how_sure_it_is() -> None:
    numbers = numbers_of(full=[0.7, 0.71, 0.69], vig=[0.8, 0.82, 0.79], half=[0.79, 0.83, 0.78])
    lines = advice(found(numbers, tokens={"full": 1000, "vig": 500, "half": 200}, pilot=2.0))
    assert lines[0] == "Best on t.m: vig, 80.3."
    assert "settled at 3 seeds" in lines[1]
    assert lines[2].startswith("half trains on 40 % of its tokens")
    assert "2 % of the data" in lines[3]


def test_advice_where_less_is_better_or_nothing_is_sure() -> None:
    numbers = numbers_of(full=[0.7, 0.71, 0.69], vig=[0.6, 0.8, 0.65])
    lines = advice(found(numbers, lower=True))
    assert lines[0] == "Best on t.m: vig, 68.3."
    assert "which 3 seeds don't settle; about" in lines[1]
    assert advice(found(numbers_of(full=[0.7], vig=[0.5])))[1] == "No other arm came out above the baseline, full."
    one = advice(found(numbers_of(full=[0.7], vig=[0.9])))
    assert "of one run: there is no telling" in one[1]


def test_a_cell_without_a_number_is_left_out_of_its_seed() -> None:
    numbers = dict(numbers_of(full=[0.7, 0.71, 0.69], vig=[0.8, 0.81]))
    results = found(numbers)
    assert results.rows[1].mean("t.m").n == 2
    assert results.difference(results.rows[1], "t.m").mean.n == 2


def test_a_varied_baseline_is_compared_at_the_same_value() -> None:
    numbers = {("random", "30", 0): 0.5, ("random", "70", 0): 0.6, ("vig", "30", 0): 0.55, ("vig", "70", 0): 0.7,
               ("full", "", 0): 0.65}  # fmt: skip
    results = found(numbers, vary={"select.p": (30, 70)}, baseline="random")
    told = {
        row["label"]: (row["compared_with"], row["numbers"]["t.m"]["difference"]) for row in as_json(results)["rows"]
    }
    assert {label: base for label, (base, _) in told.items()} == {
        "random p=30.0": "random p=30.0", "random p=70.0": "random p=70.0",
        "vig p=30.0": "random p=30.0", "vig p=70.0": "random p=70.0", "full": "random p=30.0",
    }  # fmt: skip
    assert told["random p=70.0"][1] is None
    assert told["vig p=70.0"][1]["mean"]["value"] == pytest.approx(0.1)


def test_rows_are_paired_by_what_is_varied_and_not_by_their_place() -> None:
    """What a search leaves: other values of one arm than of the other."""
    numbers = {(arm, value, seed): 0.5 + 0.1 * (arm == "vig") + 0.003 * seed * (arm == "vig")
               for arm, values in (("random", ("20", "60")), ("vig", ("40", "60", "100"))) for value in values
               for seed in range(3)}  # fmt: skip
    results = found(numbers, orders=("random < vig on t.m",), vary={"select.p": (20, 40, 60, 100)})
    assert [(step.low, step.high) for claim in results.claims for step in claim.steps] == [
        ("random p=60.0", "vig p=60.0")
    ]


def test_advice_compares_within_the_same_value() -> None:
    numbers = {(arm, value, seed): 0.9 - 0.5 * float(value) + 0.05 * (arm == "vig") + 0.002 * seed * (arm == "vig")
               for arm in ("full", "vig") for value in ("0.0", "0.4") for seed in range(3)}  # fmt: skip
    lines = advice(found(numbers, axis="mismatched", vary={"mismatched": (0.0, 0.4)}, values={"mismatched": 0.0}))
    told = [line for line in lines if line.startswith("Its difference")]
    assert len(told) == 2
    assert told[0].startswith("Its difference from full mismatched=0.0 is +5.2")
    assert told[1].startswith("Its difference from full mismatched=0.4 is +5.2")


def test_one_run_is_one_however_many_seeds_it_stands_for() -> None:
    one = Row("a", "a", {}, {"t.m": {0: 0.5, 1: 0.5, 2: 0.5}}, {}, {}, dict.fromkeys(range(3), "eval-a"))
    other = Row("b", "b", {}, {"t.m": {0: 0.7, 1: 0.7, 2: 0.7}}, {}, {}, dict.fromkeys(range(3), "eval-b"))
    assert one.mean("t.m") == (0.5, None, None, 1)
    assert not apart(other, one, "t.m").settled
    seeded = Row("c", "c", {}, {"t.m": {0: 0.7, 1: 0.72, 2: 0.69}}, {}, {}, {seed: f"eval-{seed}" for seed in range(3)})
    assert apart(seeded, one, "t.m").mean.n == 3


def test_a_law_is_of_one_value_of_what_else_is_varied() -> None:
    study = StudyFile(stages={"eval": {}}, arms={"vig": {}}, vary={"samples": (1, 2, 4), "train.lr": (1, 2)},
                      values={"samples": 1}, scaling={"over": "samples", "of": "t.m"})  # fmt: skip
    losses = {(size, rate): rate * size**-0.2 for size in (1, 2, 4) for rate in (1, 2)}
    rows = [
        Row("", "vig", {"samples": size, "train.lr": rate}, {"t.m": {0: loss}}, {}, {}, {0: f"{size} {rate}"})
        for (size, rate), loss in losses.items()
    ]  # fmt: skip
    laws = list(_scaled(study, rows))
    assert [law.arm for law in laws] == ["vig lr=1", "vig lr=2"]
    assert all(law.sizes == (1, 2) and law.error < 1e-9 for law in laws)
