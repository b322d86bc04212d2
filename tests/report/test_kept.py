"""Kept columns against VIG: every number held to SciPy's, NumPy's and scikit-learn's, or to values by hand."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from tests.command import call, refused
from tests.report.reporting import assert_mean, report
from tests.report.test_report import assert_same
from tests.selection.made import made_up, selected, write
from vig_ray.dataset.keep import json_text
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.report import compare, inspect, kept_scans, top
from vig_ray.report.compare import CompareConfig
from vig_ray.report.figures import figures
from vig_ray.report.inspect import InspectConfig
from vig_ray.report.top import TopConfig
from vig_ray.selection import job as selecting
from vig_ray.selection.config import SelectConfig
from vig_ray.stage import read_stage
from vig_ray.tables import scan

QUANTILES = {"q05": 0.05, "q1": 0.25, "median": 0.5, "q3": 0.75, "q95": 0.95}


def keep(row: dict[str, Any], **values: Any) -> None:
    texts = {name: json_text(value) for name, value in values.items()}
    row["kept"] = [{"name": name, "value": text} for name, text in texts.items() if text is not None] or None


def with_ratings(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Rows with columns of every kind, some of which go with the gain."""
    rng = np.random.default_rng(seed)
    for row in rows:
        vig = row["vig"] or 0.0
        rating = int(np.clip(round(3 + vig + rng.normal()), 1, 5))
        turns = [int(np.clip(rating + rng.integers(-1, 2), 1, 5)) for _ in range(int(rng.integers(1, 4)))]
        keep(
            row,
            rating=rating if rng.random() > 0.1 else None,
            turn_ratings=turns if rng.random() > 0.05 else [None],
            similarity=float(-vig + rng.normal(0, 2)),
            good=bool(rng.random() + vig / 10 > 0.5),
            hue=str(rng.choice(["red", "green", '"', "a · b"])),
            url=f"http://a/{rng.integers(10**9)}",
            mixed=rating if rng.random() > 0.5 else str(rng.choice(["4", "none"])),
            info={"w": rating} if rng.random() > 0.7 else None,
        )
    return rows


def make(folder: Path, rows: Sequence[dict[str, Any]], files: int = 4) -> str:
    """Scores of these rows whose record tells what is kept, as `vig score` writes it."""
    made = write(folder, rows, files=files)
    record = Path(made, "scores.stage.json")
    there = Counter(pair["name"] for row in rows for pair in row["kept"] or ())
    record.write_text(json.dumps(json.loads(record.read_text()) | {"kept": dict(there)}))
    return made


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return with_ratings(made_up(900, seed=5), 6)


@pytest.fixture(scope="module")
def scores(rows: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("kept"), rows)


@pytest.fixture(scope="module")
def told(scores: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report(scores, tmp_path_factory.mktemp("report"))


def pairs(rows: Sequence[dict[str, Any]], name: str) -> list[tuple[Any, float]]:
    """The value of a column, read by Python's JSON, and the gain of each scored row that has both."""
    found = []
    for row in rows:
        value = {pair["name"]: json.loads(pair["value"]) for pair in row["kept"] or ()}.get(name)
        if value is not None and row["vig"] is not None:
            found.append((value, row["vig"]))
    return found


def number(value: Any) -> float | None:
    """What a value counts as, by the docs' words."""
    if isinstance(value, list):
        numbers = [one for one in value if one is not None]
        return statistics.fmean(numbers) if numbers else None
    return float(value) if isinstance(value, (int, float)) else None


def column(numbers: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (row for row in numbers["kept"]["columns"] if row["column"] == name)
    return dict(found)


def assert_spread(row: dict[str, Any], vig: Sequence[float]) -> None:
    assert row["samples"] == len(vig)
    assert_mean({"mean": row["mean"], "low": row["low"], "high": row["high"]}, list(vig))
    for word, q in QUANTILES.items():
        assert row[word] == np.quantile(vig, q, method="inverted_cdf")


@pytest.mark.parametrize("name", ["rating", "turn_ratings", "similarity", "good", "mixed"])
def test_correlations_are_those_of_scipy(told: Any, rows: Any, name: str) -> None:
    found = column(told, name)
    both = [(number(value), vig) for value, vig in pairs(rows, name) if number(value) is not None]
    expected = scipy.stats.spearmanr([one for one, _ in both], [vig for _, vig in both]).statistic
    assert found["spearman"] == pytest.approx(expected, abs=1e-12)
    assert abs(expected) > 0.02
    assert (found["correlated"], found["exact"]) == (len(both), True)
    assert found["samples"] == len(pairs(rows, name))


def test_kinds_of_values_are_counted(told: Any, rows: Any) -> None:
    def kinds(name: str) -> dict[str, int]:
        return {kind: count for kind, count in column(told, name)["kinds"].items() if count}

    empty = sum(value == [None] for value, _ in pairs(rows, "turn_ratings"))
    assert kinds("turn_ratings") == {"list": len(pairs(rows, "turn_ratings")) - empty, "empty": empty}
    texts = sum(isinstance(value, str) for value, _ in pairs(rows, "mixed"))
    assert kinds("mixed") == {"number": len(pairs(rows, "mixed")) - texts, "text": texts}
    assert kinds("info") == {"other": len(pairs(rows, "info"))}
    assert told["kept"]["left_out"] == []


def test_gains_by_value(told: Any, rows: Any) -> None:
    by_rating = column(told, "rating")["values"]
    assert [row["value"] for row in by_rating] == [1, 2, 3, 4, 5]
    for row in by_rating:
        assert_spread(row, [vig for value, vig in pairs(rows, "rating") if value == row["value"]])
    by_hue = column(told, "hue")["values"]
    assert {row["text"] for row in by_hue} == {'"red"', '"green"', '"\\""', '"a · b"'}
    assert [row["median"] for row in by_hue] == sorted((row["median"] for row in by_hue), reverse=True)
    for row in by_hue:
        assert_spread(row, [vig for value, vig in pairs(rows, "hue") if value == json.loads(row["text"])])
    assert [row["value"] for row in column(told, "good")["values"]] == [0, 1]
    mixed = column(told, "mixed")["values"]
    assert [row.get("value", row.get("text")) for row in mixed][:5] == [1, 2, 3, 4, 5]
    assert {row["text"] for row in mixed[5:]} == {'"4"', '"none"'}
    url = column(told, "url")["values"]
    assert len(url) == 13
    assert url[-1]["others"] is True
    assert sum(row["samples"] for row in url) == len(pairs(rows, "url"))


def test_gains_by_ranges_of_many_numbers(told: Any, rows: Any) -> None:
    ranges = column(told, "similarity")["values"]
    assert len(ranges) == 10
    assert (ranges[0]["from"], ranges[-1]["to"]) == (None, None)
    every = pairs(rows, "similarity")
    for row in ranges:
        low, high = row["from"] or -math.inf, math.inf if row["to"] is None else row["to"]
        assert_spread(row, [vig for value, vig in every if low <= value < high])
        assert abs(row["samples"] - len(every) / 10) <= 1
    assert [row["to"] for row in ranges[:-1]] == [row["from"] for row in ranges[1:]]


@pytest.fixture
def few_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were far more rows than are held."""
    monkeypatch.setattr(kept_scans, "SAMPLED", 400)
    monkeypatch.setattr(kept_scans, "GAIN_BINS", 128)
    monkeypatch.setattr(kept_scans, "NUMBER_BINS", 64)
    monkeypatch.setattr(scan.Files.scan, "__kwdefaults__", {"batch_rows": 61, "fold": None})


def test_of_more_rows_than_are_held_counts_are_exact_and_ranks_nearly(
    scores: str, told: Any, rows: Any, tmp_path: Path, few_in_memory: None
) -> None:
    found = report(scores, tmp_path)
    for exact in told["kept"]["columns"]:
        row = column(found, exact["column"])
        assert (row["kinds"], row["samples"], row["correlated"]) == (
            exact["kinds"], exact["samples"], exact["correlated"],
        )  # fmt: skip
        assert row["exact"] == (exact["column"] == "info")
        if exact["spearman"] is not None:
            assert row["spearman"] == pytest.approx(exact["spearman"], abs=2e-3)
    for mine, exact in zip(column(found, "rating")["values"], column(told, "rating")["values"], strict=True):
        vig = sorted(vig for value, vig in pairs(rows, "rating") if value == exact["value"])
        assert (mine["value"], mine["samples"]) == (exact["value"], exact["samples"])
        assert mine["mean"] == pytest.approx(exact["mean"])
        for word in QUANTILES:
            off = abs(np.searchsorted(vig, mine[word]) - np.searchsorted(vig, exact[word])) / len(vig)
            assert off < 0.05
    similarity = column(found, "similarity")["values"]
    assert sum(row["samples"] for row in similarity) == len(pairs(rows, "similarity"))
    for row in similarity:
        low, high = row["from"] or -math.inf, math.inf if row["to"] is None else row["to"]
        inside = [vig for value, vig in pairs(rows, "similarity") if low <= value < high]
        assert row["samples"] == len(inside)
        assert row["mean"] == pytest.approx(statistics.fmean(inside))


@pytest.mark.long
def test_on_ray_data(scores: str, told: Any, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same(report(scores, tmp_path, address="auto", by="rating,hue")["kept"]["columns"],
                [column(told, "rating"), column(told, "hue")])  # fmt: skip
    monkeypatch.setattr(kept_scans, "SAMPLED", 400)
    found = report(scores, tmp_path, address="auto", by="similarity")["kept"]["columns"][0]
    assert found["exact"] is False
    assert found["spearman"] == pytest.approx(column(told, "similarity")["spearman"], abs=1e-3)


def test_by_names_the_columns_and_by_default_twelve_are_shown(scores: str, told: Any, tmp_path: Path) -> None:
    names = [row["column"] for row in report(scores, tmp_path, by="*rating*,hue")["kept"]["columns"]]
    assert names == ["rating", "turn_ratings", "hue"]
    with pytest.raises(StageError, match=r"^--by nothing: no kept column of .*/scores; they have .*rating.*--keep"):
        report(scores, tmp_path, by="nothing")
    many = made_up(40, seed=1)
    for row in many:
        keep(row, **{f"c{number:02d}": number for number in range(15)})
    many[0]["kept"] = many[0]["kept"][1:]
    found = report(make(tmp_path / "many", many), tmp_path)
    assert [row["column"] for row in found["kept"]["columns"]] == [f"c{number:02d}" for number in range(1, 13)]
    assert found["kept"]["left_out"] == ["c13", "c14", "c00"]
    assert all(row["spearman"] is None for row in found["kept"]["columns"]), "they don't vary"
    assert "kept-correlations" not in {figure.name for figure in figures(found)}


def test_scores_without_kept_columns_have_no_figures_of_them(tmp_path: Path) -> None:
    found = report(write(tmp_path, made_up(60)), tmp_path)
    assert found["kept"] == {"columns": [], "left_out": []}
    assert not {"kept", "kept-correlations"} & {figure.name for figure in figures(found)}


def test_a_column_that_no_scored_sample_has_is_told(tmp_path: Path) -> None:
    rows = made_up(60)
    for row in rows:
        keep(row, rating=1 if row["vig"] is None else None)
    found = report(make(tmp_path, rows), tmp_path)
    assert column(found, "rating")["samples"] == 0
    assert "rating: none of the scored samples has a value." in (tmp_path / "r.html").read_text()


def compared(scores: str, name: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        compare.run(CompareConfig(a=scores, column=name, as_json=True, **options)).text()
    )
    return found


def test_compare_holds_a_run_against_a_column(scores: str, rows: Any, told: Any) -> None:
    found = compared(scores, "rating")
    assert found["of"] == column(told, "rating")
    assert found["scored"] == sum(row["vig"] is not None for row in rows)
    both = pairs(rows, "rating")
    for sets, p in zip(found["agreements"], (10, 30, 50, 70), strict=True):
        count = max(1, p * len(both) // 100)
        by_vig = sorted((vig for _, vig in both), reverse=True)[count - 1]
        by_rating = sorted((value for value, _ in both), reverse=True)[count - 1]
        assert (sets["a"], sets["b"], sets["both"]) == (
            sum(vig >= by_vig for _, vig in both),
            sum(value >= by_rating for value, _ in both),
            sum(vig >= by_vig and value >= by_rating for value, vig in both),
        )
    assert found["auroc"] is None
    text = compare.run(CompareConfig(a=scores, column="rating")).text()
    assert f"{found['of']['samples']:,} of {found['scored']:,} scored samples have it: numbers" in text
    assert f"rank correlation (Spearman) with sample VIG {found['of']['spearman']:.4f}" in text
    assert "rating keeps" in text


def test_compare_tells_two_values_apart(scores: str, rows: Any, tmp_path: Path) -> None:
    found = compared(scores, "good")
    both = pairs(rows, "good")
    expected = sklearn.metrics.roc_auc_score([value for value, _ in both], [vig for _, vig in both])
    assert found["auroc"] == pytest.approx(expected, abs=1e-12)
    assert found["positive"] == "true"
    made = made_up(80, seed=2)
    for place, row in enumerate(made):
        keep(row, side=("left", "right")[place % 2])
    found = compared(make(tmp_path, made), "side")
    both = pairs(made, "side")
    expected = sklearn.metrics.roc_auc_score([value == "right" for value, _ in both], [vig for _, vig in both])
    assert (found["auroc"], found["positive"]) == (pytest.approx(expected, abs=1e-12), "right")
    assert found["agreements"] == []
    assert found["of"]["spearman"] is None


def test_compare_refuses_in_one_line(scores: str, tmp_path: Path) -> None:
    for words, said in (
        (("compare", scores, "--column", "nothing"), "--column nothing: no kept column of"),
        (("compare", scores, "--column", "*rating"), "takes the name of one column"),
        (("compare", scores, scores, "--column", "rating"), "leave out the other run"),
        (("compare", scores, "--column", "rating", "--reference", "blur,blind"), "takes one name"),
        (("compare", scores, "--column", "rating", "--reference", "blind"), "hold blur"),
    ):
        assert said in refused(*words)


def test_top_and_inspect_show_what_is_kept(scores: str, rows: Any) -> None:
    by_key = {row["sample_key"]: row for row in rows}
    listed = call("top", "--scores", scores, "--lowest", "5", "--json-lines").stdout.splitlines()
    for line in listed:
        row = json.loads(line)
        assert row["kept"] == {p["name"]: json.loads(p["value"]) for p in by_key[row["sample_key"]]["kept"]}
    shown = top.run(TopConfig(scores=scores, lowest=5)).text()
    assert "kept" in shown.splitlines()[0]
    key = json.loads(listed[0])["sample_key"]
    text = inspect.run(InspectConfig(key=key, scores=scores, model=CHECKPOINT)).text()
    assert f"similarity {json.loads(listed[0])['kept']['similarity']:.6g} · good" in " ".join(text.split())


def test_selection_carries_it(scores: str, rows: Any, tmp_path: Path) -> None:
    selecting.run(SelectConfig(scores=scores, out=str(tmp_path), p=40))
    by_key = {row["sample_key"]: row for row in rows}
    chosen = selected(tmp_path)
    assert 0 < len(chosen) < len(rows)
    assert all(row["kept"] == by_key[row["sample_key"]]["kept"] for row in chosen)


def without_kept(scores: str) -> None:
    """Make scores such as versions wrote that kept nothing."""
    import pyarrow.parquet as pq

    for path in Path(scores, "scores").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["kept"]), path)
    record = Path(scores, "scores.stage.json")
    record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "kept"}))


def test_scores_of_earlier_versions_have_none(tmp_path: Path) -> None:
    scores = write(tmp_path, made_up(80))
    without_kept(scores)
    assert report(scores, tmp_path)["kept"]["columns"] == []
    selecting.run(SelectConfig(scores=scores, out=str(tmp_path), p=40))
    assert {row["kept"] for row in selected(tmp_path)} == {None}
    assert "kept" not in json.loads(top.run(TopConfig(scores=scores, lowest=1, json_lines=True)).text())
    inspect.run(InspectConfig(key=selected(tmp_path)[0]["sample_key"], scores=scores, model=CHECKPOINT))
    with pytest.raises(StageError, match=r"--column rating: no kept column of .*; they have none \(vig import --keep"):
        compared(scores, "rating")
    assert (read_stage(f"{tmp_path}/selection") or {})["complete"]
