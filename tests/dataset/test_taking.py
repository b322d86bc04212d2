"""The rows that --limit, --sample and weights take: the same ones anywhere, and as many as their shares say."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vig_ray.dataset.importing import ImportConfig
from vig_ray.dataset.taking import place_of, shares_of
from vig_ray.errors import StageError
from vig_ray.stage import read_stage

Row = dict[str, Any]


def write(bench: Any, make_row: Any, name: str, count: int, first: int = 0) -> str:
    rows = [make_row(first + number, None) for number in range(count)]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), bench.folder / name, row_group_size=50)
    elif name.endswith(".arrow"):
        with pa.ipc.new_stream(str(bench.folder / name), pa.Table.from_pylist(rows).schema) as stream:
            stream.write_table(pa.Table.from_pylist(rows), 50)
    elif name.endswith(".jsonl"):
        bench.write(name, "\n\n".join(json.dumps(row) for row in rows))
    else:
        bench.write(name, rows)
    return str(bench.folder / name)


def keys(rows: list[Row]) -> list[str]:
    return [row["sample_key"] for row in rows]


def test_a_sample_is_the_same_wherever_it_is_taken(bench: Any, make_row: Any) -> None:
    """From JSON and Parquet, in one process and in several, a smaller one within a larger one."""
    taken = {}
    for name in ("d.json", "d.parquet"):
        data = write(bench, make_row, name, 2000)
        for sample, more in (("10%", {}), (0.3, {}), ("10%", {"seed": 1}), ("10%", {"workers": 2})):
            rows = bench.load(data, sample=sample, overwrite=True, **more)
            taken[name, str(sample), *more] = keys(rows)
            assert bench.report.left_out == {"--sample": 2000 - len(rows)}
            kept, left = f"text-only {len(rows):,}", f"left out by --sample {2000 - len(rows):,}"
            first = bench.report.text().splitlines()[0]
            assert first == f"read 2,000 = with images 0 + {kept} + failed 0 + {left}"
    for sample, *more in (("10%",), ("0.3",), ("10%", "seed"), ("10%", "workers")):
        assert taken["d.json", sample, *more] == taken["d.parquet", sample, *more]
    ten, thirty, other = (set(taken["d.json", *which]) for which in (("10%",), ("0.3",), ("10%", "seed")))
    assert taken["d.json", "10%"] == taken["d.json", "10%", "workers"]
    assert ten < thirty
    # Within 4 standard deviations of the shares that were asked for.
    assert abs(len(ten) - 200) < 4 * math.sqrt(2000 * 0.1 * 0.9)
    assert abs(len(thirty) - 600) < 4 * math.sqrt(2000 * 0.3 * 0.7)
    assert abs(len(ten & other) - 20) < 20


def test_places_are_spread_evenly() -> None:
    places = np.array([place_of(f"set/{number:010d}", 0) for number in range(20_000)])
    counts, _ = np.histogram(places, bins=20, range=(0, 1))
    assert counts.sum() == 20_000
    assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-squared with 19 degrees of freedom: one in 10,000


def test_the_first_rows(bench: Any, make_row: Any) -> None:
    a, b = write(bench, make_row, "a.jsonl", 30), write(bench, make_row, "b.parquet", 30, first=30)
    rows = bench.load(a, b, limit=40)
    assert [row["id"] for row in rows] == [f"row-{number}" for number in range(40)]
    assert bench.report.text().splitlines()[:2] == [
        "read 40 = with images 0 + text-only 40 + failed 0",
        f"  not read: {b} after row 9, 0 more files",
    ]
    assert [row["id"] for row in bench.load(a, b, limit=30, overwrite=True)][-1] == "row-29"
    assert bench.report.not_read == f"{a} after row 58, 1 more files"  # 30 rows with blank lines between them
    for limit in (60, 1000):
        assert len(bench.load(a, b, limit=limit, overwrite=True)) == 60
        assert bench.report.not_read is None


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.parquet", "d.arrow"])
def test_the_limit_says_what_is_left_only_where_something_is(name: str, bench: Any, make_row: Any) -> None:
    data = write(bench, make_row, name, 60)
    for limit, left in ((50, True), (59, True), (60, False)):
        assert len(bench.load(data, limit=limit, overwrite=True)) == limit
        assert (bench.report.not_read is not None) == left
    taken = bench.load(data, sample="50%", overwrite=True)
    bench.load(data, sample="50%", limit=len(taken) - 1, overwrite=True)
    assert bench.report.not_read is not None


def test_damage_after_the_limit_is_not_met(bench: Any, make_row: Any) -> None:
    data = bench.write("d.json", json.dumps([make_row(0, None), make_row(1, None)])[:-40])
    assert len(bench.load(data, limit=1)) == 1
    assert bench.report.not_read == f"{data} after row 0, 0 more files"


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.parquet"])
def test_the_first_rows_of_a_sample(name: str, bench: Any, make_row: Any) -> None:
    """What a reader looks at ahead isn't counted as left out."""
    data = write(bench, make_row, name, 300)
    whole = keys(bench.load(data, sample="20%"))
    rows = bench.load(data, sample="20%", limit=10, overwrite=True)
    assert keys(rows) == whole[:10]
    last = int(rows[-1]["id"].removeprefix("row-"))
    assert bench.report.left_out == {"--sample": last + 1 - 10}


def test_a_mixture_has_the_proportions_of_interleave_datasets(bench: Any, make_row: Any) -> None:
    counts, weights = {"a": 3000, "b": 1200, "c": 900}, {"a": 0.5, "b": 0.3, "c": 0.2}
    data = [
        write(bench, make_row, f"{name}.{kind}", count)
        for (name, count), kind in zip(counts.items(), ("parquet", "json", "jsonl"), strict=True)
    ]
    rows = bench.load(*(f"{path}={weight}" for path, weight in zip(data, weights.values(), strict=True)))
    ours = Counter(row["sample_key"].partition("/")[0] for row in rows)
    mixed = datasets.interleave_datasets(
        [datasets.Dataset.from_dict({"name": [name] * count}) for name, count in counts.items()],
        probabilities=list(weights.values()),
        seed=3,
        stopping_strategy="first_exhausted",
    )
    theirs = Counter(mixed["name"])
    assert ours["b"] == 1200  # the first to run out: all of it
    for name, weight in weights.items():
        # Both are drawn; theirs stops where the draws exhaust one, ours is N = 4000 times the weight on average.
        assert abs(ours[name] - 4000 * weight) < 4 * math.sqrt(4000 * weight)
        assert abs(ours[name] / ours.total() - theirs[name] / theirs.total()) < 0.03
    assert bench.report.left_out == {"weights": 5100 - len(rows)}
    record = read_stage(str(bench.out / "samples"))
    assert record is not None
    assert record["taken"] == {"weights": [0.5, 0.3, 0.2], "seed": 0}
    assert [mixed["rows"] for mixed in record["mixture"]] == [3000, 1200, 900]
    assert [mixed["share"] for mixed in record["mixture"]] == pytest.approx([2 / 3, 1, 8 / 9])
    # Of the mixture a sample has the same proportions, and its rows are among the mixture's.
    fewer = bench.load(
        *(f"{path}={weight * 10}" for path, weight in zip(data, weights.values(), strict=True)),
        sample="50%",
        overwrite=True,
    )
    assert set(keys(fewer)) < set(keys(rows))
    assert abs(len(fewer) - len(rows) / 2) < 4 * math.sqrt(len(rows) / 4)
    assert set(bench.report.left_out) == {"--sample", "weights"}
    assert sum(bench.report.left_out.values()) == 5100 - len(fewer)


def test_shares_by_hand() -> None:
    assert shares_of([100, 100], [1, 1], "ab") == (1, 1)
    assert shares_of([100, 50], [1, 1], "ab") == (0.5, 1)
    assert shares_of([100, 50], [0.2, 0.1], "ab") == pytest.approx((1, 1))
    with pytest.raises(StageError, match="b: no rows"):
        shares_of([100, 0], [1, 1], "ab")


def test_what_was_taken_is_part_of_what_was_imported(bench: Any, make_row: Any) -> None:
    data = write(bench, make_row, "d.json", 100)
    bench.load(data)
    record = read_stage(str(bench.out / "samples"))
    assert record is not None
    assert not {"taken", "mixture", "left_out", "keys_from"} & record.keys()
    bench.load(data, seed=5)  # which decides nothing where all rows are taken
    for options in ({"sample": "50%"}, {"limit": 5}):
        with pytest.raises(StageError, match="holds another run of `vig import` \\(taken differ\\)"):
            bench.load(data, **options)
    bench.load(data, sample="50%", overwrite=True)
    with pytest.raises(StageError, match="taken: seed differ"):
        bench.load(data, sample="50%", seed=1)
    with pytest.raises(StageError, match=r"none of 100 rows is taken; take a larger --sample"):
        bench.load(data, sample="0.0001%", overwrite=True)


@pytest.mark.parametrize(
    ("sample", "share"), [("1%", 0.01), ("0.01", 0.01), (0.5, 0.5), ("100%", 1.0), ("12.5 %", 0.125)]
)
def test_how_a_share_is_spelled(sample: Any, share: float) -> None:
    assert ImportConfig(data="d", out="o", sample=sample).sample == share


@pytest.mark.parametrize("sample", ["1", "2", 5, "0%", "101%", "-1%", "x", "%", "1%%", "1.2.3%"])
def test_what_is_no_share(sample: Any) -> None:
    with pytest.raises(ValueError, match=r"takes a percentage such as 1%, or a share such as 0\.01"):
        ImportConfig(data="d", out="o", sample=sample)
