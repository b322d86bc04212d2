"""`vig top` against sorting, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.selection.made import made_up, write
from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.report import top
from vig_ray.report.top import TopConfig
from vig_ray.scoring import job
from vig_ray.scoring.config import ScoreConfig


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return made_up(500, seed=11)


@pytest.fixture(scope="module")
def scores(rows: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("made"), rows, files=7)


def ranked(rows: list[dict[str, Any]], source: str | None = None) -> list[dict[str, Any]]:
    kept = [row for row in rows if row["vig"] is not None and (source is None or row["source"] == source)]
    return sorted(kept, key=lambda row: row["vig"])


def test_lowest_and_highest_are_those_of_sorting(scores: str, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "_BATCH", 64)
    found = top.run(TopConfig(scores=scores, lowest=20, highest=5))
    expected = ranked(rows)
    assert [row["sample_key"] for row in found.rows[:20]] == [row["sample_key"] for row in expected[:20]]
    assert [row["sample_key"] for row in found.rows[20:]] == [row["sample_key"] for row in expected[::-1][:5]]
    assert (found.scored, found.negative) == (len(expected), sum(row["vig"] < 0 for row in expected))


def test_one_source_and_the_default_of_50(scores: str, rows: Any) -> None:
    found = top.run(TopConfig(scores=scores, source="coco"))
    assert [row["sample_key"] for row in found.rows] == [row["sample_key"] for row in ranked(rows, "coco")[:50]]
    assert len(top.run(TopConfig(scores=scores, highest=3)).rows) == 3
    with pytest.raises(StageError, match="no sample of source 'nowhere'"):
        top.run(TopConfig(scores=scores, source="nowhere"))


def test_json_lines_and_the_table_hold_the_same_keys(scores: str) -> None:
    table = top.run(TopConfig(scores=scores, lowest=8)).text()
    lines = top.run(TopConfig(scores=scores, lowest=8, json_lines=True)).text().splitlines()
    keys = [json.loads(line)["sample_key"] for line in lines]
    assert len(keys) == 8
    assert all(key in table for key in keys)
    assert "have a negative gain" in table


def test_wrong_directories_are_one_line(scores: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no scores here"):
        top.run(TopConfig(scores=str(tmp_path)))
    with pytest.raises(StageError, match="no samples here"):
        top.run(TopConfig(scores=scores, samples=str(tmp_path)))


@pytest.mark.parametrize("by", ["loss", "ranks"])
def test_other_rules_are_pandas_ranks(by: Any, scores: str, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "_BATCH", 64)
    kept = pd.DataFrame(ranked(rows)).set_index("sample_key")
    greatest = kept["clean_loss"].rank(ascending=False)
    order = greatest if by == "loss" else (kept["vig"].rank() + greatest) / 2
    found = top.run(TopConfig(scores=scores, by=by, lowest=30, highest=4))
    assert [order[row["sample_key"]] for row in found.rows[:30]] == sorted(order)[:30]
    assert [order[row["sample_key"]] for row in found.rows[30:]] == sorted(order)[::-1][:4]
    assert "ordered by" in found.text()
    if by == "ranks":
        for row in found.rows:
            assert row["rank"] == pytest.approx((order[row["sample_key"]] - 0.5) / len(order))


def test_which_rule_to_trust_where(tmp_path: Path) -> None:
    """The packaged model sees what is left of what, and knows how many days a week has without looking."""
    data = world.write(str(tmp_path / "data"), 120, 5)
    job.run(ScoreConfig(data=data, model=CHECKPOINT, out=str(tmp_path), reference=("blur", "swap")), in_process=True)
    told = top.run(TopConfig(scores=str(tmp_path), lowest=3)).text().splitlines()
    (sees,) = [line for line in told if line.startswith("the model sees what is asked of ")]
    (blind,) = [line for line in told if "a low gain tells nothing there" in line]
    assert "place" in sees
    assert "knowledge" in blind
    alone = top.run(TopConfig(scores=str(tmp_path), lowest=3, source="knowledge")).text()
    assert "the model sees" not in alone
    assert "asked of knowledge: a low gain tells nothing" in alone
