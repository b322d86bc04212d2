"""Kept columns from a Parquet file with FineVision's ratings through every verb, to other trainers and readers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from tests.command import call, refused
from tests.end_to_end.conftest import read_scores
from tests.selection.made import selected
from vig_ray.dataset import importing
from vig_ray.dataset.importing import ImportConfig
from vig_ray.demo import CHECKPOINT, world
from vig_ray.scoring import job
from vig_ray.scoring.config import ScoreConfig
from vig_ray.stage import read_stage

ROWS = 60
KEEP = "visual_dependency_*,relevance_min,url"


def ratings(number: int, rng: random.Random) -> dict[str, Any]:
    turns = [rng.randint(1, 5) for _ in range(rng.randint(1, 3))]
    return {
        "visual_dependency_ratings": turns,
        "visual_dependency_min": min(turns),
        "relevance_min": rng.choice([4, 5, None]),
        "url": f"http://a/{number}.png",
    }


def kept_in(row: dict[str, Any]) -> dict[str, Any]:
    return {pair["name"]: json.loads(pair["value"]) for pair in row["kept"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo samples as Parquet with ratings; one image is broken, and one row has no answer."""
    folder = tmp_path_factory.mktemp("rated")
    rows = json.loads(Path(world.write(str(folder), ROWS, 7)).read_text())
    rng = random.Random(3)
    for number, row in enumerate(rows):
        row |= ratings(number, rng)
    rows[5]["conversations"] = rows[5]["conversations"][:1]
    sorted((folder / "images").iterdir())[10].write_bytes(b"no image")
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    pq.write_table(table, folder / "rated.parquet")
    return folder


@pytest.fixture(scope="module")
def expected(data: Path) -> dict[str, dict[str, Any]]:
    """What is kept of each row, by its key."""
    rows = pq.read_table(data / "rated.parquet").to_pylist()
    names = [*ratings(0, random.Random())]
    return {
        f"rated/{number:010d}": {name: row[name] for name in names if row[name] is not None}
        for number, row in enumerate(rows)
    }


def score(folder: Path, out: Path, *references: str, **options: Any) -> None:
    given = {"data": str(folder / "rated.parquet"), "keep": KEEP, "rows_per_file": 16, "workers": "1"}
    given |= {"prepare_workers": "1", "engine": "torch", "reference": references} | options
    job.run(ScoreConfig(model=CHECKPOINT, out=str(out), **given))


@pytest.fixture(scope="module")
def scored(data: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    out = tmp_path_factory.mktemp("out")
    score(data, out, "blur")
    return out


def test_every_row_of_the_scores_has_them(scored: Path, expected: Any, data: Path) -> None:
    rows = read_scores(scored)
    assert {row["sample_key"]: kept_in(row) for row in rows} == expected
    assert any(row["error"] for row in rows)
    record = read_stage(str(scored / "scores")) or {}
    assert record["kept"]["url"] == ROWS
    assert record["identity"]["samples"]["keep"] == KEEP.split(",")


def test_a_reference_that_is_added_keeps_them(scored: Path, data: Path, expected: Any) -> None:
    before = {row["sample_key"]: row["vig"] for row in read_scores(scored)}
    score(data, scored, "blind")
    rows = read_scores(scored)
    assert {row["sample_key"]: kept_in(row) for row in rows} == expected
    assert {row["sample_key"]: row["vig"] for row in rows} == before
    assert sum(row["blind_loss"] is not None for row in rows) > ROWS / 2
    assert (read_stage(str(scored / "scores")) or {})["kept"]["url"] == ROWS


def test_from_scores_to_other_trainers(scored: Path, expected: Any, tmp_path: Path) -> None:
    where = ("--scores", str(scored))
    call("select", *where, "--p", "50", "--out", str(tmp_path))
    chosen = selected(tmp_path)
    assert {row["sample_key"]: kept_in(row) for row in chosen} == {
        row["sample_key"]: expected[row["sample_key"]] for row in chosen
    }
    rows = [row for row in read_scores(scored) if row["vig"] is not None]
    rho = scipy.stats.spearmanr(
        [expected[row["sample_key"]]["visual_dependency_min"] for row in rows], [row["vig"] for row in rows]
    ).statistic
    done = call("report", *where, "--out", str(tmp_path / "r.html"), "--gallery", "1")
    assert f"visual_dependency_min {rho:+.3f}" in done.stdout
    page = (tmp_path / "r.html").read_text()
    assert "Rank correlation of VIG with the columns kept from the dataset" in page
    assert "visual_dependency_min" in page
    assert (tmp_path / "r-figures" / "kept.svg").exists()
    told = call("compare", str(scored), "--column", "visual_dependency_min").stdout
    assert f"rank correlation (Spearman) with sample VIG {rho:.4f} over {len(rows)} samples" in told
    for form in ("llava", "messages", "sharegpt"):
        out = tmp_path / f"{form}.json"
        call("export-data", "--format", form, "--selection", str(tmp_path), "--samples", str(scored / "samples"),
             "--out", str(out), *(["--samples-only"] if form == "sharegpt" else []))  # fmt: skip
        text = out.read_text()
        exported = json.loads(text) if form == "llava" else [json.loads(line) for line in text.splitlines()]
        assert sorted(row["kept"]["url"] for row in exported) == sorted(kept_in(row)["url"] for row in chosen)
        for row in exported:
            number = int(row["kept"]["url"].rpartition("/")[2].removesuffix(".png"))
            assert row["kept"] == expected[f"rated/{number:010d}"]


def test_other_readers_take_the_column_as_it_is(scored: Path, expected: Any) -> None:
    minima = {key: values["visual_dependency_min"] for key, values in expected.items()}
    where = scored / "scores"
    by_pandas = pd.read_parquet(where)
    found = {
        key: next(json.loads(pair["value"]) for pair in kept if pair["name"] == "visual_dependency_min")
        for key, kept in zip(by_pandas["sample_key"], by_pandas["kept"], strict=True)
    }
    assert found == minima
    by_polars = pl.read_parquet(where).select("sample_key", "kept").explode("kept").unnest("kept")
    by_polars = by_polars.filter(pl.col("name") == "visual_dependency_min")
    assert dict(zip(by_polars["sample_key"], by_polars["value"].cast(pl.Int64), strict=True)) == minima
    by_duckdb = duckdb.sql(
        f"select sample_key, pair.value::int from (select sample_key, unnest(kept) as pair from "
        f"read_parquet('{where}/*.parquet')) where pair.name = 'visual_dependency_min'"
    ).fetchall()
    assert dict(by_duckdb) == minima


def test_other_columns_are_another_run(scored: Path, data: Path) -> None:
    line = ("--data", str(data / "rated.parquet"), "--model", CHECKPOINT, "--out", str(scored))
    assert "keep differ" in refused("score", *line, "--keep", "url", "--engine", "torch")
    assert "--keep has no effect on" in refused("score", "--data", str(scored), *line[2:], "--keep", "url")


def test_scores_of_samples_without_them_go_on_and_compare_with_samples_imported_again(
    data: Path, tmp_path: Path, expected: Any, local_ray: None
) -> None:
    """Samples and scores as earlier versions wrote them."""
    given = {"data": str(data / "rated.parquet"), "out": str(tmp_path)}
    plain: dict[str, Any] = {"data": str(tmp_path), "keep": (), "engine": "tests.engines.gated:engine"}
    importing.run(ImportConfig(**given))
    for path in (tmp_path / "samples").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["kept"]), path)
    score(data, tmp_path, "blur", **plain)
    assert {row["kept"] for row in read_scores(tmp_path)} == {None}
    for path in (tmp_path / "scores").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["kept"]), path)
    score(data, tmp_path, "blind", **plain)
    rows = read_scores(tmp_path)
    assert {row["kept"] for row in rows} == {None}
    assert len(rows) == ROWS
    importing.run(ImportConfig(**given, keep=KEEP, overwrite=True))
    told = json.loads(call("compare", str(tmp_path), "--column", "visual_dependency_ratings", "--as-json").stdout)
    with_vig = [row for row in rows if row["vig"] is not None]
    means = [pd.Series(expected[row["sample_key"]]["visual_dependency_ratings"]).mean() for row in with_vig]
    rho = scipy.stats.spearmanr(means, [row["vig"] for row in with_vig]).statistic
    assert told["of"]["spearman"] == pytest.approx(rho, abs=1e-12)
    assert (told["scored"], told["of"]["samples"]) == (len(with_vig), len(with_vig))
