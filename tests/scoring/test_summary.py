"""What a finished `scores/` holds, in counts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.scoring.schema import scores_schema
from vig_ray.scoring.summary import summarise

SCHEMA = scores_schema(["blur", "no-image"])
ROWS = [
    {
        "sample_key": "a",
        "clean_loss": 1.0,
        "blur_loss": 1.5,
        "vig": 0.5,
        "num_answer_tokens": 3,
        "note": "LLaVA's code trains nothing of it",
    },
    {"sample_key": "b", "num_answer_tokens": 2, "note": None},
    {"sample_key": "c", "error": "NoAnswer: none"},
]


def test_notes_are_counted(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS, schema=SCHEMA), tmp_path / "a.parquet")
    summary = summarise(str(tmp_path), ["blur", "no-image"])
    assert (summary.read, summary.scored, summary.text_only, summary.failed) == (3, 1, 1, 1)
    assert summary.counts()["notes"] == {"LLaVA's code trains nothing of it": 1}
    assert "of them 1: LLaVA's code trains nothing of it" in summary.text()


def test_scores_of_before_had_no_notes(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS, schema=SCHEMA).drop_columns(["note"])
    pq.write_table(table, tmp_path / "a.parquet")
    summary = summarise(str(tmp_path), ["blur", "no-image"])
    assert (summary.read, summary.scored) == (3, 1)
    assert not summary.notes
