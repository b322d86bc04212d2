"""Questions of one's own: which files hold them, and what their ids are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation import published_a as published
from tests.evaluation.asking import read
from vig_ray.errors import StageError
from vig_ray.evaluation.asked import Asked
from vig_ray.evaluation.questions import survey
from vig_ray.evaluation.task import Given
from vig_ray.evaluation.tasks import choices


def test_an_own_id_is_no_automatic_one(tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": "x", "id": "1"}, {"question": "b", "answer": "y"}]
    file = published.as_json(tmp_path / "rows.json", rows)
    _, questions = read("exact", file)
    assert [question.id for question in questions] == ["1", "row 1"]
    assert survey(str(tmp_path), Asked("exact", Given(str(file)))).number == 2


def test_rows_are_counted_over_all_files(tmp_path: Path) -> None:
    for name in "ab":
        published.as_json(tmp_path / f"{name}.json", [{"question": name, "answer": "x"}] * 2)
    assert [question.id for question in read("exact", tmp_path)[1]] == ["row 0", "row 1", "row 2", "row 3"]


CHOICES = {"question": "What?", "choices": ["red", "blue"], "answer": "red"}


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_choices_of_every_kind_of_file(tmp_path: Path, ending: str) -> None:
    writers = {"json": published.as_json, "jsonl": published.as_lines, "parquet": published.as_parquet}
    _, (question,) = read("choices", writers[ending](tmp_path / f"rows.{ending}", [CHOICES]))
    assert question.choices == ("red", "blue")


def test_a_table_of_text_has_no_lists(tmp_path: Path) -> None:
    """TSV: `exact` reads it, `choices` can't, and says so; its documentation doesn't promise it."""
    file = published.as_tsv(tmp_path / "rows.tsv", [{**CHOICES, "choices": json.dumps(CHOICES["choices"])}])
    assert read("exact", file)[1][0].expected == ["red"]
    with pytest.raises(StageError, match=r"rows\.tsv, row 1: 'choices' is a string, not a list of strings"):
        read("choices", file)
    assert "TSV" not in (choices.__doc__ or "").partition("{")[0]
