"""The interface for notebooks: the same scores whatever holds the rows, and results that a notebook shows."""

from __future__ import annotations

import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.api.conftest import SAMPLES
from tests.command import call
from vig_ray.api import Scores, StageError, inspect, report, score, select
from vig_ray.demo import CHECKPOINT


def numbers(scores: Scores) -> list[tuple[Any, ...]]:
    """What was scored, without the keys, which begin with the data's name."""
    rows = sorted(scores, key=lambda row: row["sample_key"].rpartition("/")[2])
    return [(row["id"], row["token_ids"], row["clean_logprobs"], row["blur_logprobs"], row["vig"]) for row in rows]


def assert_same(ours: Scores, theirs: Scores) -> None:
    for one, other in zip(numbers(ours), numbers(theirs), strict=True):
        assert one[:2] == other[:2]
        for ours_, theirs_ in zip(one[2:], other[2:], strict=True):
            assert (ours_ is None) == (theirs_ is None)
            if ours_ is not None:
                np.testing.assert_allclose(ours_, theirs_, atol=1e-5)


def test_rows_in_memory_score_as_the_file_does_on_the_command_line(
    scores: Scores, folder: Path, tmp_path: Path, local_ray: None
) -> None:
    call("score", "--data", str(folder / "data.json"), "--model", CHECKPOINT, "--out", str(tmp_path))
    assert_same(scores, Scores(tmp_path))
    assert len(scores) == SAMPLES
    assert scores.summary.text() == Scores(os.path.dirname(scores.directory)).summary.text() == repr(scores)


@pytest.mark.parametrize(
    "held",
    [
        lambda rows: pd.DataFrame(rows),
        lambda rows: datasets.Dataset.from_list(
            [{**row, "image": row.get("image")} for row in rows],
            features=datasets.Features(
                {
                    "id": datasets.Value("string"),
                    "source": datasets.Value("string"),
                    "image": datasets.Image(),
                    "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
                }
            ),
        ),
    ],
    ids=["pandas", "datasets"],
)
def test_it_doesnt_matter_what_holds_the_rows(held: Any, rows: Any, scores: Scores, tmp_path: Path) -> None:
    given = [{name: row.get(name) for name in ("id", "source", "image", "conversations")} for row in rows]
    assert_same(score(held(given), CHECKPOINT, out=tmp_path), scores)


def test_tables_of_pyarrow_pandas_and_ray(scores: Scores, local_ray: None) -> None:
    table = scores.table()
    assert table.num_rows == SAMPLES
    assert scores.table(["sample_key", "vig"]).column_names == ["sample_key", "vig"]
    assert scores.dataset().count() == SAMPLES
    assert sorted(row["sample_key"] for row in scores.dataset().take_all()) == sorted(table["sample_key"].to_pylist())
    assert sorted(table["sample_key"].to_pylist())[0] == "data/0000000000"


def test_without_out_the_same_call_finds_its_scores(rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = score(rows[:4], CHECKPOINT)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert first.directory.startswith("vig-runs/data-")
    assert score(rows[:4], CHECKPOINT, window=8).directory == first.directory
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == stamps
    others = [score(rows[:3], CHECKPOINT), score(rows[:4], CHECKPOINT, too_long="truncate")]
    assert len({each.directory for each in [first, *others]}) == len(os.listdir("vig-runs")) == 3


def test_paths_of_images_start_from_the_current_directory(
    folder: Path, scores: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = json.loads((folder / "data.json").read_text())
    monkeypatch.chdir(folder)
    assert_same(score(named, CHECKPOINT, out=tmp_path / "a"), scores)
    monkeypatch.chdir(tmp_path)
    assert score(named, CHECKPOINT, out=tmp_path / "b").summary.failures == {"FileNotFoundError": scores.summary.scored}


def test_selections_lie_side_by_side(scores: Scores) -> None:
    by_vig = select(scores, p=50)
    assert select(scores, p=50).directory == by_vig.directory
    by_chance = select(scores, p=50, strategy="random")
    assert by_chance.directory != by_vig.directory
    gains = {row["sample_key"]: row["vig"] for row in scores if row["vig"] is not None}
    kept = {row["sample_key"] for row in by_vig} & gains.keys()
    assert kept == set(sorted(gains, key=gains.__getitem__)[-(len(gains) // 2) :])
    assert (
        len(by_vig)
        == by_vig.table().num_rows
        == by_vig.counts.kept[0].counted.total("scored") + len([row for row in scores if row["vig"] is None])
    )
    assert "tau" in repr(by_vig)
    compared = select(scores, p=[30, 50])
    assert [kept.share for kept in compared.counts.kept] == [30, 50]
    with pytest.raises(StageError, match="nothing is selected; give one p"):
        compared.table()


class Text(HTMLParser):
    """The text of HTML, and the tags that it has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags = "", set[str]()
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)


def test_inspect_shows_the_sample_with_its_image(scores: Scores) -> None:
    table = scores.table().filter(pa.compute.is_valid(scores.table()["vig"]))
    shown = inspect(scores, table["sample_key"][0])
    html = shown._repr_html_()
    row = table.slice(0, 1).to_pylist()[0]
    text = Text(html).text
    assert row["sample_key"] in text
    assert f"{row['vig']:+.4f}" in text
    assert html.count('<img src="data:image/jpeg;base64,') == 2
    assert html.count("<tr>") == 1 + row["num_answer_tokens"]
    assert len(html) < 100_000
    assert not Text(html).tags & {"script", "style", "link", "iframe"}
    assert repr(shown).startswith(row["sample_key"])
    assert "\x1b" not in repr(shown)


def test_report_is_linked_from_where_the_notebook_is(
    scores: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(os.path.dirname(scores.directory))
    written = report(scores, selection=select(scores, p=50), figures=False, tagger="none")
    assert Path("report.html").stat().st_size > 50_000
    assert '<a href="report.html"' in written._repr_html_()
    assert written.numbers["counts"]["read"] == SAMPLES
    assert written.numbers["selection"]["strategy"] == "vig"
    elsewhere = report(scores, out=tmp_path / "other.html", figures=False, tagger="none")
    assert elsewhere.path == str(tmp_path / "other.html")


@pytest.mark.parametrize(
    ("call_it", "told"),
    [
        (lambda rows, _: score(rows, CHECKPOINT, windw=3), "windw: no such option"),
        (lambda rows, _: score(rows, CHECKPOINT, window=0), r"window 0: input should be greater"),
        (lambda rows, _: score(rows, "nowhere/at/all"), "no such folder; --model takes"),
        (lambda rows, _: score(3, CHECKPOINT), r"builtins\.int, and must be a path"),
        (lambda rows, _: score([], CHECKPOINT), "holds no rows"),
        (lambda rows, _: score("nowhere.json", CHECKPOINT), "nowhere.json: no such file"),
        (lambda rows, scores: select(scores, q=3), "q: no such option"),
        (lambda rows, scores: select("nowhere"), "nowhere: no scores here"),
        (lambda rows, scores: inspect(scores, "data/none"), "data/none: no such sample"),
        (lambda rows, scores: report(scores, out="a.txt"), "name a file that ends in .html"),
    ],
)
def test_what_is_wrong_is_one_line(
    call_it: Any, told: str, rows: Any, scores: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match=told) as refused:
        call_it(rows, scores)
    assert "\n" not in str(refused.value)


def test_a_model_that_is_loaded_is_refused_in_one_line() -> None:
    with pytest.raises(StageError, match="model: takes a checkpoint's folder or a hub id, not a dict"):
        score([{"id": "0"}], {})  # type: ignore[arg-type]
